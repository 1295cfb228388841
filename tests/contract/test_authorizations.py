"""Authorizations over the wire: begun, allowed, completed once, and each refusal."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import grpc
import httpx
import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.credentials.settings import Settings
from services.shared.postgres import connect
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.provider_double import (
    Fault,
    ProviderDouble,
    answers,
    drops_after,
    drops_before,
    refuses,
    replaces,
)
from tests.providers import AT_DOOR, OWN_REDIRECT, allowed, state_of
from tests.refusals import details, expect_refused

ACTIVE, AUTHORIZING = pb2.CONNECTION_STATE_ACTIVE, pb2.CONNECTION_STATE_AUTHORIZING
NOTHING = "A" * 43


@pytest.fixture(scope="session")
def credentials(mesh: Mesh) -> CredentialsServiceStub:
    return mesh.stub(CredentialsServiceStub, "credentials")


@pytest.fixture(scope="session")
def door(mesh: Mesh) -> CredentialsServiceStub:
    """credentials, as the front door calls it."""
    return mesh.stub(CredentialsServiceStub, "credentials", "app_proxy")


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


@pytest.fixture(scope="session")
async def bystander(mesh: Mesh) -> Customer:
    """Who begins nothing that is not refused."""
    return await mesh.customer()


async def start(
    credentials: CredentialsServiceStub, customer: Customer, **fields: Any
) -> pb2.StartAuthorizationResponse:
    request = {"request_id": fresh_id(), "provider": "loopback", "name": "Mia's notes"} | fields
    return await credentials.StartAuthorization(
        pb2.StartAuthorizationRequest(**request), metadata=bearer(customer.key)
    )


async def renew(
    credentials: CredentialsServiceStub, customer: Customer, connection_id: str, **fields: Any
) -> pb2.StartAuthorizationResponse:
    request = {"request_id": fresh_id(), "connection_id": connection_id} | fields
    return await credentials.StartAuthorization(
        pb2.StartAuthorizationRequest(**request), metadata=bearer(customer.key)
    )


async def complete(
    credentials: CredentialsServiceStub, key: str, state: str, code: str
) -> pb2.Connection:
    answer = await credentials.CompleteAuthorization(
        pb2.CompleteAuthorizationRequest(state=state, code=code), metadata=bearer(key)
    )
    return answer.connection


async def finish(
    door: CredentialsServiceStub, state: str, code: str
) -> pb2.FinishAuthorizationResponse:
    return await door.FinishAuthorization(pb2.FinishAuthorizationRequest(state=state, code=code))


async def get(
    credentials: CredentialsServiceStub, customer: Customer, connection_id: str
) -> pb2.Connection:
    request = pb2.GetConnectionRequest(connection_id=connection_id)
    return (await credentials.GetConnection(request, metadata=bearer(customer.key))).connection


async def outcomes(*calls: Awaitable[Any]) -> list[str]:
    """Returns the codes of calls that are made at once."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return sorted(
        result.code().name if isinstance(result, grpc.aio.AioRpcError) else "OK"
        for result in results
    )


async def test_a_person_allows_it_at_the_front_door(
    credentials: CredentialsServiceStub, door: CredentialsServiceStub, customer: Customer
) -> None:
    started = await start(credentials, customer, exclusive=True)
    assert started.connection.state == AUTHORIZING
    assert started.connection.kind == pb2.CONNECTION_KIND_AUTHORIZATION_CODE
    assert started.expire_time.seconds > started.connection.create_time.seconds
    waiting = await get(credentials, customer, started.connection.connection_id)
    assert waiting.authorization_expire_time == started.expire_time
    query = parse_qs(urlsplit(started.authorization_url).query)
    assert query["redirect_uri"] == [AT_DOOR]
    assert query["code_challenge_method"] == ["S256"]
    state, code = await allowed(started.authorization_url)
    asked = await door.DescribeAuthorization(pb2.DescribeAuthorizationRequest(state=state))
    assert (asked.provider_title, asked.connection_name) == ("Loopback", "Mia's notes")
    assert (asked.beneficiary, list(asked.scopes)) == ("Acme", ["read", "write"])
    finished = await finish(door, state, code)
    assert (finished.provider_title, finished.connection_name) == ("Loopback", "Mia's notes")
    connection = await get(credentials, customer, started.connection.connection_id)
    assert (connection.state, connection.client_id) == (ACTIVE, "")
    assert not connection.HasField("authorization_expire_time")
    assert list(connection.scopes) == ["read", "write"]
    assert connection.HasField("token_expire_time")


async def test_whoever_names_a_redirect_and_a_client_completes_it(
    credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> None:
    own = {"client_id": provider.client.client_id, "client_secret": provider.client.client_secret}
    started = await start(credentials, customer, redirect_url=OWN_REDIRECT, scopes=["read"], **own)
    assert provider.client.client_secret not in started.authorization_url
    state, code = await allowed(started.authorization_url)
    connection = await complete(credentials, customer.key, state, code)
    assert connection.connection_id == started.connection.connection_id
    assert (connection.state, list(connection.scopes)) == (ACTIVE, ["read"])
    assert connection.client_id == provider.client.client_id


async def test_what_the_provider_granted_counts_and_not_what_was_asked(
    credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> None:
    started = await start(credentials, customer, redirect_url=OWN_REDIRECT)
    state, code = await allowed(started.authorization_url)
    narrow = '{"access_token": "a", "token_type": "Bearer", "scope": "read"}'
    provider.next("/token", replaces(narrow))
    connection = await complete(credentials, customer.key, state, code)
    assert list(connection.scopes) == ["read"]
    assert not connection.HasField("token_expire_time")


async def test_a_state_works_once_also_when_many_come_at_once(
    credentials: CredentialsServiceStub,
    door: CredentialsServiceStub,
    customer: Customer,
    provider: ProviderDouble,
) -> None:
    own = await allowed(
        (await start(credentials, customer, redirect_url=OWN_REDIRECT)).authorization_url
    )
    at_door = await allowed((await start(credentials, customer)).authorization_url)
    before = provider.seen["/token"]
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: complete(credentials, customer.key, *own),
        lambda: finish(door, *at_door),
    ]
    for call in calls:
        assert await outcomes(*(call() for _ in range(5))) == ["NOT_FOUND"] * 4 + ["OK"]
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await call()
    # The provider was asked for neither a second time.
    assert provider.seen["/token"] == before + 2


async def test_repeated_it_is_another_url_for_the_same_connection_and_the_old_one_is_dead(
    credentials: CredentialsServiceStub, door: CredentialsServiceStub, customer: Customer
) -> None:
    request_id = fresh_id()
    answers_ = [await start(credentials, customer, request_id=request_id) for _ in range(2)]
    old, new = (state_of(answer.authorization_url) for answer in answers_)
    assert old != new
    assert len({answer.connection.connection_id for answer in answers_}) == 1
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await finish(door, old, "code")
    await finish(door, *(await allowed(answers_[1].authorization_url)))
    at_once = fresh_id()
    calls = (start(credentials, customer, request_id=at_once) for _ in range(5))
    assert len({answer.connection.connection_id for answer in await asyncio.gather(*calls)}) == 1


async def test_a_request_id_with_other_content_is_refused(
    credentials: CredentialsServiceStub, customer: Customer
) -> None:
    request_id = fresh_id()
    started = await start(credentials, customer, request_id=request_id)
    named = started.connection.connection_id
    for other in ({"name": "x"}, {"scopes": ["read"]}, {"redirect_url": OWN_REDIRECT}):
        with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
            await start(credentials, customer, request_id=request_id, **other)
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await renew(credentials, customer, named, request_id=request_id)
    await renew(credentials, customer, named, request_id="renewal")
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await renew(credentials, customer, named, request_id="renewal", scopes=["read"])
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await start(credentials, customer, request_id="renewal")


async def test_a_person_who_says_no_leaves_it_as_it_was(
    credentials: CredentialsServiceStub,
    door: CredentialsServiceStub,
    customer: Customer,
    provider: ProviderDouble,
) -> None:
    started = await start(credentials, customer)
    state, before = state_of(started.authorization_url), provider.seen["/token"]
    assert (await finish(door, state, "")).provider_title == "Loopback"
    assert provider.seen["/token"] == before
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await finish(door, state, "")
    connection = await get(credentials, customer, started.connection.connection_id)
    assert connection.state == AUTHORIZING


@pytest.mark.parametrize(
    ("fault", "code", "reason"),
    [
        (refuses("invalid_grant"), "FAILED_PRECONDITION", "AUTHORIZATION_REFUSED"),
        (refuses("invalid_client", 401), "FAILED_PRECONDITION", "AUTHORIZATION_REFUSED"),
        (answers(429), "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (answers(500), "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (answers(200, "<html>"), "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (drops_before(), "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
        (drops_after(), "UNAVAILABLE", "PROVIDER_UNAVAILABLE"),
    ],
)
async def test_without_the_providers_grant_a_connection_keeps_the_one_it_has(
    credentials: CredentialsServiceStub,
    customer: Customer,
    provider: ProviderDouble,
    fault: Fault,
    code: str,
    reason: str,
) -> None:
    first = await start(credentials, customer, redirect_url=OWN_REDIRECT)
    held = await complete(credentials, customer.key, *(await allowed(first.authorization_url)))
    again = await renew(credentials, customer, held.connection_id, redirect_url=OWN_REDIRECT)
    arrived = await allowed(again.authorization_url)
    provider.next("/token", fault)
    with expect_refused(code, reason) as refused:
        await complete(credentials, customer.key, *arrived)
    if reason == "PROVIDER_UNAVAILABLE":
        assert "started again" in str(refused.value.details())
    else:
        assert details(refused.value)[0].metadata["provider_error"].startswith("invalid_")
    # The state is used up all the same.
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await complete(credentials, customer.key, *arrived)
    assert await get(credentials, customer, held.connection_id) == held


async def test_a_broken_connection_is_mended_by_a_new_authorization(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> None:
    started = await start(credentials, customer, redirect_url=OWN_REDIRECT)
    named = started.connection.connection_id
    await complete(credentials, customer.key, *(await allowed(started.authorization_url)))
    await as_service(
        mesh,
        "UPDATE connections SET state = 'needs_reauthorization', state_reason = 'grant_refused'"
        " WHERE connection_id = $1",
        named,
    )
    broken = await get(credentials, customer, named)
    assert broken.state_reason == pb2.STATE_REASON_GRANT_REFUSED
    renewed = await renew(credentials, customer, named, redirect_url=OWN_REDIRECT)
    assert renewed.connection == broken
    mended = await complete(credentials, customer.key, *(await allowed(renewed.authorization_url)))
    assert (mended.connection_id, mended.state) == (named, ACTIVE)
    assert mended.state_reason == pb2.STATE_REASON_UNSPECIFIED
    # Where the client is the tenant's own, it is so again unless another is named.
    own = {"client_id": provider.client.client_id, "client_secret": provider.client.client_secret}
    for client, expected in ((own, own["client_id"]), ({}, own["client_id"])):
        renewed = await renew(credentials, customer, named, redirect_url=OWN_REDIRECT, **client)
        arrived = await allowed(renewed.authorization_url)
        mended = await complete(credentials, customer.key, *arrived)
        assert mended.client_id == expected


async def as_service(mesh: Mesh, statement: str, *values: Any) -> None:
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    connection = await connect(settings)
    try:
        await connection.execute("SET ROLE credentials_service")
        await connection.execute(statement, *values)
    finally:
        await connection.close()


async def test_an_expired_state_is_one_that_never_was(
    mesh: Mesh,
    credentials: CredentialsServiceStub,
    door: CredentialsServiceStub,
    customer: Customer,
) -> None:
    states = [
        state_of((await start(credentials, customer, **fields)).authorization_url)
        for fields in ({}, {"redirect_url": OWN_REDIRECT})
    ]
    await as_service(
        mesh,
        "UPDATE authorizations SET expires_at = now() WHERE tenant_id = $1",
        customer.tenant_id,
    )
    for state in (*states, NOTHING, "", "x", NOTHING + "A"):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await finish(door, state, "code")
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await complete(credentials, customer.key, state, "code")
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await door.DescribeAuthorization(pb2.DescribeAuthorizationRequest(state=state))


async def test_whoever_the_redirect_belongs_to_completes_it_and_nobody_else(
    credentials: CredentialsServiceStub, door: CredentialsServiceStub, customer: Customer
) -> None:
    at_door = state_of((await start(credentials, customer)).authorization_url)
    own = state_of(
        (await start(credentials, customer, redirect_url=OWN_REDIRECT)).authorization_url
    )
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await complete(credentials, customer.key, at_door, "code")
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await finish(door, own, "code")
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await door.DescribeAuthorization(pb2.DescribeAuthorizationRequest(state=own))
    # Neither attempt used it up: now the provider is asked, which knows no such code.
    with expect_refused("FAILED_PRECONDITION", "AUTHORIZATION_REFUSED"):
        await complete(credentials, customer.key, own, "code")
    with expect_refused("FAILED_PRECONDITION", "AUTHORIZATION_REFUSED"):
        await finish(door, at_door, "code")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("request_id", {"request_id": ""}),
        ("provider", {"provider": "nobody"}),
        ("provider", {"provider": "particular", "parameters": {"subdomain": "acme"}}),
        ("name", {"name": ""}),
        ("parameters.x", {"parameters": {"x": "y"}}),
        ("scopes", {"scopes": ["read write"]}),
        ("scopes", {"scopes": [str(number) for number in range(101)]}),
        ("client_id", {"provider": "github"}),
        ("client_id", {"client_secret": "secret"}),
        ("client_id", {"client_id": "a\nb"}),
        ("redirect_url", {"redirect_url": "http://example.com/callback"}),
        ("redirect_url", {"redirect_url": "https:///callback"}),
        ("redirect_url", {"redirect_url": "https://example.com/#fragment"}),
        ("redirect_url", {"redirect_url": "https://user@example.com/"}),
        ("redirect_url", {"redirect_url": "http://127.0.0.1.example.com/"}),
        ("redirect_url", {"redirect_url": "javascript://localhost/%0aalert(1)"}),
        ("redirect_url", {"redirect_url": "https://exa mple.com/"}),
        ("redirect_url", {"redirect_url": "https://example.com:port/"}),
        ("redirect_url", {"redirect_url": "https://example.com/" + "x" * 2_000}),
        ("provider", {"connection_id": "con_" + "0" * 26}),
    ],
)
async def test_an_authorization_with_a_bad_field_is_refused_by_name(
    credentials: CredentialsServiceStub, bystander: Customer, field: str, fields: dict[str, Any]
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await start(credentials, bystander, **fields)


async def test_a_code_that_cannot_be_one_is_refused_and_the_state_stays(
    credentials: CredentialsServiceStub, door: CredentialsServiceStub, customer: Customer
) -> None:
    started = await start(credentials, customer, redirect_url=OWN_REDIRECT)
    state = state_of(started.authorization_url)
    for code in ("", "a\nb", "c" * 4_097):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="code"):
            await complete(credentials, customer.key, state, code)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="code"):
        await finish(door, state, "a\nb")
    assert (
        await complete(credentials, customer.key, *(await allowed(started.authorization_url)))
    ).state == ACTIVE


async def test_only_what_a_person_allowed_can_be_authorized_anew(
    credentials: CredentialsServiceStub, customer: Customer
) -> None:
    request = pb2.CreateConnectionRequest(
        request_id="r", provider="loopback", name="n", static_token=pb2.StaticToken(token="t")
    )
    made = await credentials.CreateConnection(request, metadata=bearer(customer.key))
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_KIND"):
        await renew(credentials, customer, made.connection.connection_id)
    for unknown in ("x", "con_" + "0" * 26):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await renew(credentials, customer, unknown)


async def test_the_code_of_a_stranger_is_refused_by_the_verifier(
    credentials: CredentialsServiceStub, customer: Customer
) -> None:
    """RFC 9700, 4.5: a code from another flow, injected."""
    flows = [await start(credentials, customer, redirect_url=OWN_REDIRECT) for _ in range(2)]
    (own, _), (_, stolen) = [await allowed(flow.authorization_url) for flow in flows]
    with expect_refused("FAILED_PRECONDITION", "AUTHORIZATION_REFUSED"):
        await complete(credentials, customer.key, own, stolen)


async def test_the_browser_is_led_nowhere_but_to_where_it_was_said(
    credentials: CredentialsServiceStub, customer: Customer
) -> None:
    started = await start(credentials, customer, redirect_url="https://evil.example/callback")
    async with httpx.AsyncClient() as browser:
        answer = await browser.get(started.authorization_url)
    assert not answer.is_redirect
