"""What the gateway makes of each way in which a provider can fail it."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from services.credentials.domain import (
    AnswerLostError,
    GrantRefusedError,
    ProviderAwayError,
    StateReason,
)
from services.credentials.providers.gateway import HttpGateway
from services.credentials.providers.outbound import MOST_ANSWER_BYTES, open_outbound
from tests.provider_desk import JSON, Desk, Patience, catalogue_with, cleared, open_desk
from tests.provider_double import (
    Fault,
    answers,
    drops_after,
    drops_before,
    hangs,
    raw_answer,
    refuses,
    replaces,
    truncates,
)

PAGE = "<!doctype html><title>Sorry</title>"


@pytest.fixture(scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path_factory.mktemp("providers")) as desk:
        yield desk


@pytest.fixture
def desk(shared: Desk) -> Desk:
    return cleared(shared)


@pytest.mark.parametrize(
    ("fault", "reason", "named"),
    [
        (refuses("invalid_grant"), StateReason.GRANT_REFUSED, "invalid_grant"),
        (refuses("invalid_client", 401), StateReason.CLIENT_REFUSED, "invalid_client"),
        (refuses("unauthorized_client"), StateReason.CLIENT_REFUSED, "unauthorized_client"),
        (refuses("invalid_grant", 200), StateReason.GRANT_REFUSED, "invalid_grant"),
        (refuses("x" * 65), StateReason.GRANT_REFUSED, "unnamed"),
        (refuses("\\u0007 ring"), StateReason.GRANT_REFUSED, "unnamed"),
        (answers(200, '{"ok": false}', **JSON), StateReason.GRANT_REFUSED, "unnamed"),
        (answers(400, '{"error": {"a": 1}}', **JSON), StateReason.GRANT_REFUSED, "unnamed"),
        (answers(400, "{}", **JSON), StateReason.GRANT_REFUSED, "status 400"),
        (answers(401, "{}", **JSON), StateReason.CLIENT_REFUSED, "status 401"),
    ],
)
async def test_a_refusal_is_for_good(
    desk: Desk, fault: Fault, reason: StateReason, named: str
) -> None:
    error = await desk.met(fault)
    assert isinstance(error, GrantRefusedError)
    assert (error.reason, error.provider_error) == (reason, named)


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (answers(429), None),
        (answers(429, retry_after="7"), timedelta(seconds=7)),
        (answers(429, retry_after="9" * 400), timedelta(hours=1)),
        (answers(429, retry_after="-5"), None),
        (answers(429, retry_after="soon"), None),
        (answers(503, retry_after="30"), timedelta(seconds=30)),
        (refuses("temporarily_unavailable", 503), None),
        (refuses("ratelimited", 200), None),
        (answers(403, PAGE), None),
        (answers(400, PAGE), None),
        (answers(302, location="https://example.org/"), None),
    ],
)
async def test_what_was_turned_away_can_be_asked_again(
    desk: Desk, fault: Fault, wait: timedelta | None
) -> None:
    error = await desk.met(fault)
    assert isinstance(error, ProviderAwayError)
    assert error.retry_after == wait


async def test_a_date_to_wait_for_counts_by_the_providers_own_clock(desk: Desk) -> None:
    # Both clocks are five minutes apart, and more.
    theirs = datetime.now(UTC) - timedelta(days=3)
    until = format_datetime(theirs + timedelta(seconds=90), usegmt=True)
    error = await desk.met(
        answers(503, date=format_datetime(theirs, usegmt=True), retry_after=until)
    )
    assert isinstance(error, ProviderAwayError)
    assert error.retry_after == timedelta(seconds=90)


@pytest.mark.parametrize(
    "fault",
    [
        answers(500),
        answers(502, PAGE),
        answers(503),
        answers(504),
        refuses("server_error", 400),
        drops_before(),
        drops_after(),
        truncates(),
        replaces(""),
        replaces("{}"),
        replaces(PAGE, content_type="text/html"),
        replaces("[" * 100_000),
        replaces('["a", "list"]'),
        replaces('{"access_token": ""}'),
        replaces('{"access_token": 7}'),
        replaces('{"access_token": "two\\r\\nx-evil: lines"}'),
        replaces('{"access_token": "t\\u00f6ken"}'),
        replaces(json.dumps({"access_token": "t" * 16_385})),
        replaces(json.dumps({"access_token": "good", "refresh_token": "r" * 16_385})),
        replaces(json.dumps({"access_token": "good", "refresh_token": ["r"]})),
        replaces(json.dumps({"access_token": "good", "scope": "a\u0007b"})),
        replaces(json.dumps({"access_token": "t", "beside": "x" * MOST_ANSWER_BYTES})),
    ],
)
async def test_when_in_doubt_the_answer_is_lost(desk: Desk, fault: Fault) -> None:
    assert isinstance(await desk.met(fault), AnswerLostError)


async def test_an_answer_that_does_not_come_in_time_is_lost(desk: Desk) -> None:
    late = asyncio.Event()
    async with open_outbound(Patience(provider_timeout_seconds=0.3)) as http:
        hasty = Desk(desk.double, http, desk.provider, HttpGateway(http))
        assert isinstance(await hasty.met(hangs(late)), AnswerLostError)
    # The provider heeds it all the same, with nobody left to tell.
    late.set()
    async with asyncio.timeout(30):
        while not desk.double.state.seen["client_credentials"]:
            await asyncio.sleep(0.01)


async def test_nothing_is_spent_at_a_provider_that_cannot_be_reached(
    desk: Desk, tmp_path: Path
) -> None:
    listener = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    url = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    texts = [
        desk.double.provider_yaml("tls").replace(desk.double.url, f"https://{url}"),
        desk.double.provider_yaml("nowhere").replace(desk.double.url, "http://no.such.invalid"),
        desk.double.provider_yaml("gone").replace(desk.double.url, "http://127.0.0.1:1"),
    ]
    catalogue = catalogue_with(tmp_path, *texts)
    for name in ("tls", "nowhere", "gone"):
        provider = catalogue.get(name)
        assert provider is not None
        with pytest.raises(ProviderAwayError):
            await desk.gateway.client_credentials(provider, desk.client, {}, scopes=[])
    listener.close()


@pytest.mark.parametrize(
    ("said", "life"),
    [
        (60, 60),
        ("60", 60),
        (60.9, 60),
        (1e300, 3_650 * 86_400),
        (-1, 300),
        (0, 300),
        ("soon", 300),
        (True, 300),
        ([], 300),
        (float("nan"), 300),
        (float("inf"), 3_650 * 86_400),
        (None, None),
        ("", None),
    ],
)
async def test_lifetimes_are_believed_within_bounds(
    desk: Desk, said: object, life: int | None
) -> None:
    grant = await desk.given({"access_token": "a-token", "expires_in": said})
    if life is None:
        assert grant.expires_in is None
    else:
        assert grant.expires_in is not None
        assert timedelta() <= timedelta(seconds=life) - grant.expires_in <= timedelta(seconds=30)


async def test_a_lifetime_counts_from_when_the_token_was_asked_for(desk: Desk) -> None:
    asked = asyncio.Event()

    async def slow(wire: object) -> None:
        await asyncio.sleep(0.5)
        answer = raw_answer(200, '{"access_token": "a-token", "expires_in": 60}', **JSON)
        wire.writer.write(answer)  # type: ignore[attr-defined]
        asked.set()

    desk.double.next("/token", slow)
    grant = await desk.gateway.client_credentials(desk.provider, desk.client, {}, scopes=[])
    assert asked.is_set()
    assert grant.expires_in is not None
    assert grant.expires_in <= timedelta(seconds=59.6)


@pytest.mark.parametrize(
    ("said", "scopes"),
    [
        ("b a", ("b", "a")),
        ("a,b", ("a", "b")),
        ("a, b", ("a", "b")),
        (["a", "b", "a"], ("a", "b")),
        ("", None),
        (7, None),
    ],
)
async def test_scopes_are_read_as_providers_write_them(
    desk: Desk, said: object, scopes: tuple[str, ...] | None
) -> None:
    grant = await desk.given({"access_token": "a-token", "scope": said})
    assert grant.scopes == scopes


@pytest.mark.parametrize("said", ["bearer", "BEARER", None, 7, "Bearer\r\nx: y"])
async def test_a_bearer_token_is_called_so(desk: Desk, said: object) -> None:
    grant = await desk.given({"access_token": "a-token", "token_type": said})
    assert grant.token_type == "Bearer"


async def test_an_error_that_repeats_a_secret_is_not_passed_on(desk: Desk) -> None:
    token = "rt-verysecretrefreshtoken"
    desk.double.next("/token", refuses(f"unknown {token}"))
    with pytest.raises(GrantRefusedError) as refused:
        await desk.refresh(token)
    assert refused.value.provider_error == "unnamed"
    assert token not in str(refused.value)
