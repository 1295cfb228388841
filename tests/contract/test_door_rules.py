"""The door's rules by themselves: hosts, keys, refusals, problem documents."""

import json
from datetime import timedelta
from string import ascii_lowercase, digits

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.app_proxy.door import (
    Allowance,
    Decision,
    key_invalid,
    key_missing,
    not_running,
    opens,
    over_limit,
    presented_key,
    unavailable,
)
from services.app_proxy.problems import answer_to, prefers_html
from services.app_proxy.routes import Route, RouteState, host_of, routable_host
from services.app_proxy.web import refusal_of
from services.shared.errors import (
    FailedPreconditionError,
    InvalidFieldError,
    Reason,
    UnavailableError,
)
from services.shared.ids import DeploymentId, KeyId, TenantId
from services.shared.principal import KeyKind, Plan, Principal

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


def route(state: RouteState = RouteState.RUNNING) -> Route:
    return Route(
        "notes.localhost", DeploymentId("dep_a"), TenantId("ten_a"), state, "notes", mcp=True
    )


def principal(
    kind: KeyKind = KeyKind.DEPLOYMENT, tenant: str = "ten_a", deployment: str | None = "dep_a"
) -> Principal:
    return Principal(
        KeyId("key_1"),
        kind,
        TenantId(tenant),
        DeploymentId(deployment) if deployment else None,
        frozenset({"db:read"}),
        Plan.FREE,
    )


@pytest.mark.parametrize(
    ("authority", "host"),
    [
        ("notes.localhost", "notes.localhost"),
        ("Notes.LOCALHOST:8080", "notes.localhost"),
        ("notes.localhost.", "notes.localhost"),
        ("notes.localhost.:443", "notes.localhost"),
        ("a" * 63 + ".localhost", "a" * 63 + ".localhost"),
    ],
)
def test_a_host_is_read_from_an_authority(authority: str, host: str) -> None:
    assert host_of(authority) == host


@pytest.mark.parametrize(
    "authority",
    [
        "",
        ".",
        ":80",
        "[::1]:80",
        "user@notes.localhost",
        "notes.localhost:80:90",
        "notes.localhost:",
        "notes.localhost:999999",
        "notes..localhost",
        "notes.localhost..",
        ".notes.localhost",
        "-notes.localhost",
        "notes-.localhost",
        "no tes.localhost",
        "notes.localhost/",
        "notes.localhost\n",
        "notes.localhost:80\n",
        "nötes.localhost",
        "nоtes.localhost",  # noqa: RUF001 the look-alike is the attack
        "notes_a.localhost",
        "*.localhost",
        "a" * 64 + ".localhost",
        ".".join(["a" * 60] * 5),
        "notes.localhost,other.localhost",
        "notes.localhost\0",
    ],
)
def test_junk_is_no_host(authority: str) -> None:
    assert host_of(authority) is None


@given(st.text(max_size=300))
def test_whatever_comes_is_a_clean_host_or_none(authority: str) -> None:
    host = host_of(authority)
    assert host is None or host_of(host) == host
    assert set(host or "") <= set(f"{ascii_lowercase}{digits}-.")


@pytest.mark.promise("P-11")
@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "a.b.localhost",
        "a.example.com",
        "A.localhost",
        "a.localhost.",
        "a.localhost:80",
        ".localhost",
        "alocalhost",
    ],
)
def test_a_route_needs_one_label_below_the_domain(host: str) -> None:
    with pytest.raises(InvalidFieldError):
        routable_host("route.host", host, "localhost")


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("Bearer abc", "abc"),
        ("bearer abc", "abc"),
        ("BEARER  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("abc", None),
        ("", None),
        (None, None),
    ],
)
def test_a_key_follows_bearer(header: str | None, key: str | None) -> None:
    assert presented_key(header) == key


@pytest.mark.promise("P-04")
def test_only_a_key_of_exactly_this_deployment_opens_it() -> None:
    assert opens(principal(), route())
    assert not opens(None, route())
    assert not opens(principal(deployment="dep_b"), route())
    assert not opens(principal(tenant="ten_b"), route())
    assert not opens(principal(KeyKind.TENANT, deployment=None), route())
    assert not opens(principal(KeyKind.TENANT), route())
    assert not opens(principal(KeyKind.OPERATOR), route())
    assert not opens(principal(KeyKind.JOB), route())


def test_a_route_says_its_state() -> None:
    assert not_running(route()) is None
    starting = not_running(route(RouteState.STARTING))
    failed = not_running(route(RouteState.FAILED))
    assert starting is not None
    assert (starting.status, starting.reason, starting.retry_after) == (
        503,
        "DEPLOYMENT_NOT_READY",
        1,
    )
    assert failed is not None
    assert (failed.status, failed.reason, failed.retry_after) == (503, "OPERATION_FAILED", 60)
    suspended = not_running(route(RouteState.SUSPENDED))
    assert suspended is not None
    assert (suspended.status, suspended.reason) == (402, "DEPLOYMENT_SUSPENDED")
    assert suspended.retry_after is None


def test_what_the_provisioner_says_of_a_suspended_database_is_said_as_the_door_says_it() -> None:
    late = FailedPreconditionError("the deployment is suspended", Reason.DEPLOYMENT_SUSPENDED)
    assert refusal_of(late) == not_running(route(RouteState.SUSPENDED))


@pytest.mark.promise("P-05")
@pytest.mark.parametrize(
    ("wait", "seconds"),
    [
        (timedelta(milliseconds=1), 1),
        (timedelta(seconds=1), 1),
        (timedelta(seconds=1.001), 2),
        (timedelta(days=3), 259_200),
        (timedelta(0), 1),
        (None, 1),
    ],
)
def test_retry_after_is_whole_seconds_rounded_up(wait: timedelta | None, seconds: int) -> None:
    refusal = over_limit(Allowance(Decision.BURST_EXCEEDED, wait))
    assert refusal is not None
    assert (refusal.status, refusal.retry_after) == (429, seconds)


def test_each_decision_of_the_limiter_has_its_answer() -> None:
    assert over_limit(Allowance(Decision.ALLOWED)) is None
    quota = over_limit(Allowance(Decision.QUOTA_EXCEEDED, timedelta(days=1)))
    assert quota is not None
    assert (quota.status, quota.reason) == (429, "QUOTA_EXCEEDED")
    assert over_limit(Allowance(Decision.KEY_INVALID)) == key_invalid()


def test_a_problem_document_says_what_rfc_9457_asks() -> None:
    answer = answer_to(key_missing(), "application/json")
    assert answer.status == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith("Bearer")
    problem = json.loads(answer.body)
    assert problem["type"] == "urn:bulkhead:error:KEY_MISSING"
    assert problem["status"] == 401
    assert problem["reason"] == "KEY_MISSING"
    assert set(problem) == {"type", "title", "status", "detail", "reason"}


def test_a_browser_gets_a_page_of_a_state_and_a_program_a_problem() -> None:
    refusal = not_running(route(RouteState.STARTING))
    assert refusal is not None
    page, problem = answer_to(refusal, BROWSER), answer_to(refusal, "application/json")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["retry-after"] == problem.headers["retry-after"] == "1"
    assert page.body.startswith("<!doctype html>")
    assert json.loads(problem.body)["reason"] == "DEPLOYMENT_NOT_READY"
    suspended = not_running(route(RouteState.SUSPENDED))
    assert suspended is not None
    assert answer_to(suspended, BROWSER).body.startswith("<!doctype html>")
    assert json.loads(answer_to(suspended, None).body)["status"] == 402
    assert answer_to(key_invalid(), BROWSER).headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("TEXT/HTML; q=0.5", True),
        ("application/json, text/html;q=0.5", False),
        ("application/json, text/html", False),
        ("application/json, text/event-stream", False),
        ("text/html;q=0", False),
        ("text/html;q=junk", False),
        ("*/*", False),
        ("", False),
        (None, False),
    ],
)
def test_a_page_is_for_who_prefers_one(accept: str | None, html: bool) -> None:
    assert prefers_html(accept) is html


def test_a_store_that_is_away_closes_the_door_without_naming_it() -> None:
    answer = answer_to(unavailable(UnavailableError("valkey at 10.0.0.1 is away")), None)
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert "10.0.0.1" not in answer.body
