"""DeleteConnection over the wire: revoked, no longer lent, erased, and what is said of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from deploy.local.authorization_state import Family
from services.shared.keyformat import digest
from tests.lending import Lender, below
from tests.mesh import Mesh, bearer
from tests.provider_double import Fault, ProviderDouble, answers, drops_after, refuses, waits
from tests.providers import UNREVOKING, allowed
from tests.refusals import expect_refused

REVOKED, NOTHING = pb2.REVOCATION_REVOKED, pb2.REVOCATION_NOTHING
UNSUPPORTED, FAILED = pb2.REVOCATION_UNSUPPORTED, pb2.REVOCATION_FAILED


@pytest.fixture
async def lender(mesh: Mesh) -> Lender:
    return Lender(mesh, await mesh.customer())


async def delete(lender: Lender, connection_id: str) -> pb2.DeleteConnectionResponse:
    return await lender.credentials.DeleteConnection(
        pb2.DeleteConnectionRequest(connection_id=connection_id),
        metadata=bearer(lender.customer.key),
    )


async def get(lender: Lender, connection_id: str) -> pb2.Connection:
    answer = await lender.credentials.GetConnection(
        pb2.GetConnectionRequest(connection_id=connection_id),
        metadata=bearer(lender.customer.key),
    )
    return answer.connection


def newest_family(provider: ProviderDouble) -> Family:
    return list(provider.state.refresh_tokens.values())[-1].family


def client(provider: ProviderDouble) -> dict[str, str]:
    known = provider.client
    return {"client_id": known.client_id, "client_secret": known.client_secret}


async def kept(mesh: Mesh, connection_id: str) -> list[str]:
    """Returns where something sealed is kept of the connection, in whatever column it may be."""
    async with below(mesh) as db:
        columns = await db.fetch(
            "SELECT table_name, column_name FROM information_schema.columns"
            " WHERE domain_name = 'sealed' AND table_name IN"
            " (SELECT table_name FROM information_schema.columns"
            "  WHERE column_name = 'connection_id')"
        )
        assert len(columns) >= 6
        return [
            f"{table}.{column}"
            for table, column in columns
            if await db.fetchval(
                f"SELECT count({column}) FROM {table} WHERE connection_id = $1", connection_id
            )
        ]


@pytest.mark.promise("P-22")
async def test_a_connection_goes_with_its_grant_its_bindings_its_keys_and_its_secrets(
    mesh: Mesh, lender: Lender, provider: ProviderDouble
) -> None:
    named = await lender.authorized(**client(provider))
    family = newest_family(provider)
    for _ in range(2):
        await lender.bind(await lender.deployment(), named)
    key = (await lender.connection_key(named)).key
    renewal = await lender.started(connection_id=named, provider="", name="")
    assert await kept(mesh, named)
    deleted = await delete(lender, named)
    assert (deleted.revocation, deleted.advice, deleted.bindings_ended) == (REVOKED, "", 2)
    assert family.revoked
    assert await kept(mesh, named) == []
    resolved = await mesh.stub(AuthServiceStub, "auth", "credentials").ResolveKeys(
        auth_pb2.ResolveKeysRequest(digests=[digest(key)])
    )
    assert not resolved.resolutions[0].HasField("principal")
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await get(lender, named)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        state, code = await allowed(renewal.authorization_url)
        await lender.credentials.CompleteAuthorization(
            pb2.CompleteAuthorizationRequest(state=state, code=code),
            metadata=bearer(lender.customer.key),
        )
    revocations = provider.seen["/revoke"]
    assert await delete(lender, named) == deleted
    assert provider.seen["/revoke"] == revocations


@pytest.mark.parametrize(
    ("make", "revocation", "advised"),
    [
        (lambda lender, _: lender.connection(), UNSUPPORTED, True),
        (
            lambda lender, _: lender.connection(api_key=pb2.ApiKey(key="key")),
            UNSUPPORTED,
            True,
        ),
        (
            lambda lender, provider: lender.connection(
                client_credentials=pb2.ClientCredentials(**client(provider))
            ),
            REVOKED,
            True,
        ),
        (
            lambda lender, provider: lender.authorized(provider=UNREVOKING, **client(provider)),
            UNSUPPORTED,
            True,
        ),
    ],
)
async def test_what_cannot_be_revoked_is_said(
    lender: Lender,
    provider: ProviderDouble,
    make: Callable[[Lender, ProviderDouble], Any],
    revocation: "pb2.Revocation.ValueType",
    advised: bool,
) -> None:
    deleted = await delete(lender, await make(lender, provider))
    assert deleted.revocation == revocation
    assert bool(deleted.advice) == advised


async def test_what_nobody_allowed_yet_has_nothing_to_revoke(
    mesh: Mesh, lender: Lender, provider: ProviderDouble
) -> None:
    started = await lender.started(**client(provider))
    named = started.connection.connection_id
    before = provider.seen["/revoke"]
    assert (await delete(lender, named)).revocation == NOTHING
    assert (provider.seen["/revoke"], await kept(mesh, named)) == (before, [])


@pytest.mark.parametrize(
    ("faults", "revocation"),
    [
        ([answers(500)], REVOKED),
        ([drops_after(), answers(429)], REVOKED),
        ([answers(503)] * 3, FAILED),
        ([refuses("invalid_client", 401)], FAILED),
    ],
)
async def test_a_provider_that_does_not_confirm_is_asked_again_and_then_a_person_is(
    mesh: Mesh,
    lender: Lender,
    provider: ProviderDouble,
    faults: list[Fault],
    revocation: "pb2.Revocation.ValueType",
) -> None:
    named = await lender.authorized()
    provider.next("/revoke", *faults)
    deleted = await delete(lender, named)
    assert deleted.revocation == revocation
    assert ("Loopback" in deleted.advice) == (revocation == FAILED)
    # It is deleted all the same, and the answer stays.
    assert await kept(mesh, named) == []
    assert await delete(lender, named) == deleted


async def test_a_grant_that_comes_when_its_connection_is_going_is_given_back(
    lender: Lender, provider: ProviderDouble
) -> None:
    started = await lender.started()
    state, code = await allowed(started.authorization_url)
    event = asyncio.Event()
    provider.next("/token", waits(event))
    seen = provider.state.seen["token 200"]
    completing = asyncio.create_task(_completed(lender, state, code))
    async with asyncio.timeout(30):
        while provider.state.seen["token 200"] == seen:
            await asyncio.sleep(0.01)
    assert (await delete(lender, started.connection.connection_id)).revocation == NOTHING
    event.set()
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await completing
    assert newest_family(provider).revoked


async def _completed(lender: Lender, state: str, code: str) -> None:
    await lender.credentials.CompleteAuthorization(
        pb2.CompleteAuthorizationRequest(state=state, code=code),
        metadata=bearer(lender.customer.key),
    )


async def test_a_request_id_of_what_is_deleted_makes_nothing_new(lender: Lender) -> None:
    await delete(lender, await lender.connection(request_id="r"))
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await lender.connection(request_id="r")


async def test_many_deletions_at_once_are_one(lender: Lender, provider: ProviderDouble) -> None:
    named = await lender.authorized()
    await lender.bind(await lender.deployment(), named)
    answers_ = await asyncio.gather(*(delete(lender, named) for _ in range(5)))
    assert {(one.revocation, one.bindings_ended) for one in answers_} == {(REVOKED, 1)}
