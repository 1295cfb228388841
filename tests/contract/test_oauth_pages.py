"""The page that people are led back to: what it says, what it does, and what it never does."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from typing import Any

import httpx
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.app_proxy import oauth_pages as pages
from services.app_proxy.oauth import OAuthCallback, OutcomeUnknownError
from services.app_proxy.oauth_pages import PATH, Asked
from services.app_proxy.settings import Settings
from services.shared.errors import (
    BulkheadError,
    FailedPreconditionError,
    LimitExceededError,
    PermissionDeniedError,
    Reason,
    UnavailableError,
)
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble, answers, refuses
from tests.providers import allowed

API_HOST = "localhost:8080"
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


@pytest.fixture(scope="session")
def credentials(mesh: Mesh) -> CredentialsServiceStub:
    return mesh.stub(CredentialsServiceStub, "credentials")


@pytest.fixture
async def browser(mesh: Mesh) -> AsyncIterator[httpx.AsyncClient]:
    """A browser at the API's host, past Envoy, with Envoy's certificate."""
    settings, files = mesh.settings["app_proxy"], mesh.pki["edge"]
    assert isinstance(settings, Settings)
    context = ssl.create_default_context(cafile=str(files.authority))
    context.check_hostname = False
    context.load_cert_chain(files.certificate, files.key)
    async with httpx.AsyncClient(
        base_url=f"https://{settings.http_listen}",
        verify=context,
        headers={"host": API_HOST},
        timeout=60,
    ) as client:
        yield client


async def start(
    credentials: CredentialsServiceStub, customer: Customer, **fields: Any
) -> tuple[str, str, str]:
    """Returns connection, state and code of an authorization that the provider agreed to."""
    request = {"request_id": fresh_id(), "provider": "loopback", "name": "Mia's <notes>"} | fields
    started = await credentials.StartAuthorization(
        pb2.StartAuthorizationRequest(**request), metadata=bearer(customer.key)
    )
    state, code = await allowed(started.authorization_url)
    return started.connection.connection_id, state, code


async def state_of(
    credentials: CredentialsServiceStub, customer: Customer, connection_id: str
) -> "pb2.ConnectionState.ValueType":
    got = await credentials.GetConnection(
        pb2.GetConnectionRequest(connection_id=connection_id), metadata=bearer(customer.key)
    )
    return got.connection.state


def text_of(page: httpx.Response) -> str:
    return unescape(re.sub(r"<[^>]*>", "", page.text.partition("<body>")[2]))


def heading(page: httpx.Response) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page.text)
    assert found is not None, page.text
    return unescape(re.sub(r"<[^>]*>", "", found[1]))


def fields_of(page: httpx.Response) -> dict[str, str]:
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', page.text)
    return {name: unescape(value) for name, value in found}


async def test_a_person_is_asked_and_allows_it(
    credentials: CredentialsServiceStub, customer: Customer, browser: httpx.AsyncClient
) -> None:
    connection_id, state, code = await start(credentials, customer)
    page = await browser.get(PATH, params={"state": state, "code": code, "iss": "https://x.test"})
    assert page.status_code == 200
    assert heading(page) == "Let Acme act at Loopback?"
    for told in ("Mia's <notes>", "read", "write", "someone else than you think"):
        assert told in text_of(page)
    form = fields_of(page)
    assert form == {"state": state, "code": code}
    done = await browser.post(PATH, data=form | {"decision": "allow"})
    assert (done.status_code, heading(done)) == (200, "Connected")
    assert "You can close this window" in text_of(done)
    found = await state_of(credentials, customer, connection_id)
    assert found == pb2.CONNECTION_STATE_ACTIVE
    again = await browser.post(PATH, data=form | {"decision": "allow"})
    assert (again.status_code, heading(again)) == (404, "This link does not work any more")


@pytest.mark.promise("P-22")
async def test_opening_the_link_changes_nothing_however_often(
    credentials: CredentialsServiceStub,
    customer: Customer,
    browser: httpx.AsyncClient,
    provider: ProviderDouble,
) -> None:
    connection_id, state, code = await start(credentials, customer)
    seen = provider.seen["/token"]
    for method in ("GET", "HEAD", "GET"):
        page = await browser.request(method, PATH, params={"state": state, "code": code})
        assert page.status_code == 200
        assert bool(page.text) == (method == "GET")
    assert provider.seen["/token"] == seen
    found = await state_of(credentials, customer, connection_id)
    assert found == pb2.CONNECTION_STATE_AUTHORIZING
    allow = {"state": state, "code": code, "decision": "allow"}
    assert heading(await browser.post(PATH, data=allow)) == "Connected"


@pytest.mark.promise("P-22")
async def test_the_page_names_who_began_it_and_not_who_opens_it(
    mesh: Mesh, credentials: CredentialsServiceStub, browser: httpx.AsyncClient
) -> None:
    made = await mesh.stub(AuthServiceStub, "auth").CreateTenant(
        auth_pb2.CreateTenantRequest(
            request_id=fresh_id(), name="<b>Mallory</b> & GitHub", plan=auth_pb2.PLAN_PRO
        ),
        metadata=bearer(mesh.operator_key),
    )
    mallory = Customer(made.tenant_id, made.key, made.key_id)
    _, state, code = await start(credentials, mallory, name='"><script>alert(1)</script>')
    page = await browser.get(PATH, params={"state": state, "code": code})
    assert heading(page) == "Let <b>Mallory</b> & GitHub act at Loopback?"
    assert "<script" not in page.text
    assert "<b>Mallory" not in page.text


async def test_a_person_cancels_and_the_link_is_of_no_use_any_more(
    credentials: CredentialsServiceStub, customer: Customer, browser: httpx.AsyncClient
) -> None:
    connection_id, state, code = await start(credentials, customer)
    form = {"state": state, "code": code}
    cancelled = await browser.post(PATH, data=form | {"decision": "cancel"})
    assert (cancelled.status_code, heading(cancelled)) == (200, "Not connected")
    assert (await browser.get(PATH, params=form)).status_code == 404
    assert (await browser.post(PATH, data=form | {"decision": "allow"})).status_code == 404
    found = await state_of(credentials, customer, connection_id)
    assert found == pb2.CONNECTION_STATE_AUTHORIZING


@pytest.mark.promise("P-22")
@pytest.mark.parametrize("site", ["cross-site", "same-site", "Same-Origin, none", ""])
@pytest.mark.parametrize("decision", ["allow", "cancel"])
async def test_an_answer_that_another_sites_page_sends_is_refused_and_uses_nothing_up(
    credentials: CredentialsServiceStub,
    customer: Customer,
    browser: httpx.AsyncClient,
    site: str,
    decision: str,
) -> None:
    connection_id, state, code = await start(credentials, customer)
    form = {"state": state, "code": code}
    sent = {"sec-fetch-site": site, "origin": "null"}
    foreign = await browser.post(PATH, data=form | {"decision": decision}, headers=sent)
    assert (foreign.status_code, heading(foreign)) == (403, "This did not come from our page")
    found = await state_of(credentials, customer, connection_id)
    assert found == pb2.CONNECTION_STATE_AUTHORIZING
    # The redirect itself comes from the provider's site.
    assert (await browser.get(PATH, params=form, headers=sent)).status_code == 200
    for own in ("same-origin", "none"):
        sent = {"sec-fetch-site": own, "origin": "null"}
        answered = await browser.post(PATH, data=form | {"decision": "allow"}, headers=sent)
        assert answered.status_code == (200 if own == "same-origin" else 404)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("access_denied", "You did not allow it"),
        ("server_error", "Loopback did not allow it"),
        ("<script>alert(1)</script>", "Loopback did not allow it"),
    ],
)
async def test_who_said_no_at_the_provider_is_told_so_and_can_end_it(
    credentials: CredentialsServiceStub,
    customer: Customer,
    browser: httpx.AsyncClient,
    error: str,
    said: str,
) -> None:
    _, state, _ = await start(credentials, customer)
    led_back = {"state": state, "error": error, "error_description": "call 0800 now"}
    page = await browser.get(PATH, params=led_back)
    assert (page.status_code, heading(page)) == (200, said)
    assert "0800" not in page.text
    assert "<script" not in page.text
    ended = await browser.post(PATH, data=fields_of(page) | {"decision": "cancel"})
    assert heading(ended) == "Not connected"
    assert (await browser.get(PATH, params=led_back)).status_code == 404


async def test_a_provider_that_refuses_and_one_that_is_away_are_told_apart(
    credentials: CredentialsServiceStub,
    customer: Customer,
    browser: httpx.AsyncClient,
    provider: ProviderDouble,
) -> None:
    for fault, status, said in (
        (refuses("invalid_grant"), 400, "The provider refused"),
        (answers(503, "<h1>internal text</h1>"), 502, "The provider cannot be reached"),
    ):
        _, state, code = await start(credentials, customer)
        provider.next("/token", fault)
        form = {"state": state, "code": code, "decision": "allow"}
        page = await browser.post(PATH, data=form)
        assert (page.status_code, heading(page)) == (status, said)
        assert "internal text" not in page.text


async def test_every_page_keeps_itself_to_itself(
    credentials: CredentialsServiceStub, customer: Customer, browser: httpx.AsyncClient
) -> None:
    _, state, code = await start(credentials, customer)
    asked = await browser.get(PATH, params={"state": state, "code": code})
    unknown = await browser.get(PATH, params={"state": "A" * 43, "code": "c"})
    malformed, wrong = await browser.get(PATH), await browser.put(PATH)
    for page in (asked, unknown, malformed, wrong):
        headers = page.headers
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-type"] == "text/html; charset=utf-8"
        policy = dict(
            each.strip().partition(" ")[::2]
            for each in headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert policy["form-action"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert policy["style-src"].startswith("'sha256-")
        assert '<html lang="en">' in page.text
        assert "http://" not in page.text
        assert "https://" not in page.text
        assert "set-cookie" not in headers
    assert unknown.status_code == 404
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD, POST")


@pytest.mark.parametrize(
    "query",
    [
        "",
        "code=c",
        "state=s",
        "state=&code=c",
        "state=s&state=s&code=c",
        "state=s&code=c&code=d",
        f"state={'s' * 257}&code=c",
        f"state=s&code={'c' * 4_097}",
        "state=s%00&code=c",
        "state=s%FF&code=c",
        "state=s%C3%A9&code=c",
        "state=s&code=c&" + "&".join(f"a{number}=b" for number in range(30)),
    ],
)
async def test_what_no_provider_sends_is_an_error_page(
    browser: httpx.AsyncClient, query: str
) -> None:
    expected = 404 if query == "state=s" else 400
    assert (await browser.get(f"{PATH}?{query}")).status_code == expected
    if query != "state=s":
        sent = await browser.post(PATH, content=query, headers={"content-type": FORM})
        assert sent.status_code == 400


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, "state=s&code=c"),
        (FORM, "state=s&code=c&decision=perhaps"),
        (FORM, "state=s&decision=allow"),
        (FORM, b"state=s&code=\xff&decision=allow"),
        (FORM, "x=" + "y" * 17_000),
        ("application/json", '{"state": "s"}'),
        ("text/plain", "state=s&code=c&decision=allow"),
    ],
)
async def test_what_our_own_form_does_not_send_is_an_error_page(
    browser: httpx.AsyncClient, content_type: str, body: str | bytes
) -> None:
    sent = await browser.post(PATH, content=body, headers={"content-type": content_type})
    assert (sent.status_code, heading(sent)) == (400, "This link is not complete")


@pytest.mark.promise("P-04")
@pytest.mark.parametrize("host", ["notes-ab12cd34.localhost", "example.com", "127.0.0.1.evil"])
async def test_no_other_host_serves_the_page(browser: httpx.AsyncClient, host: str) -> None:
    page = await browser.get(f"{PATH}?state=s&code=c", headers={"host": host})
    assert page.headers["content-type"] == "application/problem+json"


@pytest.mark.promise("P-04")
@pytest.mark.parametrize("path", ["/mcp", f"{PATH}/", f"{PATH}/x", "/oauth", "/llms.txt"])
async def test_the_host_of_the_page_serves_nothing_else(
    browser: httpx.AsyncClient, path: str
) -> None:
    page = await browser.get(path)
    assert page.status_code in (401, 404)
    assert page.headers["content-type"] == "application/problem+json"


class Stubborn:
    """credentials as it is on a bad day: whatever is asked, it fails so. A double by name."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def describe(self, state: str) -> Asked:
        raise self._error

    async def finish(self, state: str, code: str) -> tuple[str, str]:
        raise self._error


@asynccontextmanager
async def at(authorizations: Any, most_at_once: int = 1) -> AsyncIterator[httpx.AsyncClient]:
    async def nothing_else(*_: object) -> None:
        raise AssertionError("it was passed on")

    app = OAuthCallback(
        nothing_else,
        authorizations=authorizations,
        hosts=["localhost"],
        most_at_once=most_at_once,
    )
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnavailableError("a secret of ours"), 503),
        (LimitExceededError("a secret of ours", Reason.OVERLOADED, ""), 503),
        (PermissionDeniedError("a secret of ours", Reason.PEER_REFUSED), 503),
        (UnavailableError("a secret of ours", Reason.PROVIDER_UNAVAILABLE), 502),
        (FailedPreconditionError("a secret of ours", Reason.AUTHORIZATION_REFUSED), 400),
        (FailedPreconditionError("a secret of ours", Reason.CONNECTION_UNREADABLE), 409),
        (OutcomeUnknownError("a secret of ours"), 504),
    ],
)
async def test_a_failure_of_ours_is_told_without_its_words(
    error: BulkheadError, status: int
) -> None:
    async with at(Stubborn(error)) as client:
        pages_seen = [
            await client.post(PATH, data={"state": "s", "code": "c", "decision": "allow"}),
            await client.get(PATH, params={"state": "s", "code": "c"}),
        ]
    for page in pages_seen:
        assert page.status_code == status
        assert "secret" not in page.text
        assert ("retry-after" in page.headers) == (status == 503)


class Slow:
    """credentials while a provider hangs. A double by name."""

    def __init__(self) -> None:
        self.entered, self.leave = asyncio.Event(), asyncio.Event()

    async def describe(self, state: str) -> Asked:
        return Asked("Loopback", "notes", "Acme", ())

    async def finish(self, state: str, code: str) -> tuple[str, str]:
        self.entered.set()
        await self.leave.wait()
        return "Loopback", "notes"


@pytest.mark.promise("P-38")
async def test_those_who_wait_for_a_provider_do_not_take_every_place() -> None:
    slow = Slow()
    form = {"state": "s", "code": "c", "decision": "allow"}
    async with at(slow) as client:
        waiting = asyncio.create_task(client.post(PATH, data=form))
        await slow.entered.wait()
        refused = await client.get(PATH, params={"state": "s", "code": "c"})
        assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
        slow.leave.set()
        assert (await waiting).status_code == 200
        assert (await client.get(PATH, params={"state": "s", "code": "c"})).status_code == 200


def test_what_a_person_is_told_has_no_gap_for_markup() -> None:
    asked = Asked("<i>P</i>", '"><img src=x>', "<u>", ("<s>",))
    page = pages.ask(asked, "a&b\"'<", "<c>").html
    for raw in ("<i>", "<img", "<u>", "<s>", "<c>"):
        assert raw not in page
