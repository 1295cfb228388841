"""What a connection is deleted by, step by step: each may fail, or be the last."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.domain import Revocation
from services.credentials.grants import refresh_place
from services.credentials.ports import Bearer
from services.shared.errors import (
    UnavailableError,
)
from services.shared.ids import ConnectionId, TenantId
from tests.connection_parts import (
    PATIENCE,
    DyingDatabase,
    FailingRegistry,
    KilledError,
    Parts,
    connection_parts,
)
from tests.lending import Lender, below
from tests.mesh import Mesh, bearer
from tests.provider_double import ProviderDouble, hangs
from tests.refusals import expect_refused

# How many transactions a deletion has, one after the other.
TRANSACTIONS = 5


@pytest.fixture(scope="session")
async def parts(mesh: Mesh) -> AsyncIterator[Parts]:
    async with connection_parts(mesh) as opened:
        yield opened


@pytest.fixture
async def lender(mesh: Mesh) -> Lender:
    return Lender(mesh, await mesh.customer())


async def delete_over_the_wire(lender: Lender, named: str) -> pb2.DeleteConnectionResponse:
    return await lender.credentials.DeleteConnection(
        pb2.DeleteConnectionRequest(connection_id=named), metadata=bearer(lender.customer.key)
    )


async def state_of(lender: Lender, named: str) -> str:
    async with below(lender.mesh) as db:
        return str(
            await db.fetchval("SELECT state FROM connections WHERE connection_id = $1", named)
        )


@pytest.mark.promise("P-22")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, TRANSACTIONS + 1))
async def test_a_deletion_that_ends_anywhere_goes_on_from_there(
    parts: Parts, lender: Lender, provider: ProviderDouble, at: int, after: bool
) -> None:
    named = await lender.authorized()
    family = list(provider.state.refresh_tokens.values())[-1].family
    await lender.bind(await lender.deployment(), named)
    dying = parts.deletion(DyingDatabase(parts.database, parts.settings, at, after))
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    with pytest.raises(KilledError):
        await dying.delete(tenant, key, ConnectionId(named))
    # From its first step on nothing is vended.
    assert (await state_of(lender, named) == "active") == (at == 1 and not after)
    deleted = await delete_over_the_wire(lender, named)
    assert (deleted.revocation, deleted.bindings_ended) == (pb2.REVOCATION_REVOKED, 1)
    assert family.revoked
    assert await state_of(lender, named) == "deleted"


async def test_a_deletion_whose_keys_cannot_be_ended_now_goes_on_when_it_is_repeated(
    parts: Parts, lender: Lender
) -> None:
    named = await lender.authorized()
    failing = FailingRegistry(parts.mesh, UnavailableError("auth is away"))
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    revoked = len(parts.gateway.revoked)
    deletion = parts.deletion(parts.database, failing)
    with pytest.raises(UnavailableError):
        await deletion.delete(tenant, key, ConnectionId(named))
    assert await state_of(lender, named) == "deleting"
    asked = len(parts.gateway.revoked)
    assert asked > revoked
    await deletion.delete(tenant, key, ConnectionId(named))
    # What the provider made of it was written down, and it was left alone.
    assert len(parts.gateway.revoked) == asked
    assert await state_of(lender, named) == "deleted"


async def test_while_a_connection_goes_nothing_of_it_changes(parts: Parts, lender: Lender) -> None:
    named = await lender.authorized()
    static = await lender.connection()
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE connections SET state = 'deleting' WHERE connection_id = ANY($1)",
            [named, static],
        )
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_NOT_ACTIVE"):
        await lender.started(connection_id=named, provider="", name="")
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_NOT_ACTIVE"):
        await lender.credentials.UpdateConnection(
            pb2.UpdateConnectionRequest(connection_id=static, name="x"),
            metadata=bearer(lender.customer.key),
        )
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await lender.bind(await lender.deployment(), static)


async def test_a_provider_that_hangs_keeps_no_deletion_from_its_end(
    parts: Parts, lender: Lender, provider: ProviderDouble
) -> None:
    named = await lender.authorized()
    answered = asyncio.Event()
    provider.next("/revoke", hangs(answered))
    deletion = replace(parts, within=timedelta(seconds=0.2)).deletion(parts.database)
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    deleted = await deletion.delete(tenant, key, ConnectionId(named))
    answered.set()
    assert deleted.revoked.revocation is Revocation.FAILED
    assert "Loopback" in deleted.revoked.advice
    assert await state_of(lender, named) == "deleted"


@pytest.mark.promise("P-22")
async def test_what_is_revoked_is_what_a_refresh_under_way_brings(
    parts: Parts, lender: Lender
) -> None:
    named = await lender.authorized()
    tenant, connection = TenantId(lender.customer.tenant_id), ConnectionId(named)
    cipher = await parts.data_keys.cipher(tenant)
    before = len(parts.gateway.revoked)
    async with parts.locks.hold(connection, PATIENCE):
        deleting = asyncio.create_task(
            parts.deletion(parts.database).delete(tenant, Bearer(lender.customer.key), connection)
        )
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while await state_of(lender, named) != "deleting":
                await asyncio.sleep(0.01)
        newest = cipher.seal(refresh_place(connection), "newest")
        async with below(parts.mesh) as db:
            await db.execute(
                "UPDATE connections SET sealed_refresh_token = $2 WHERE connection_id = $1",
                named,
                newest,
            )
        assert len(parts.gateway.revoked) == before
    await deleting
    assert parts.gateway.revoked[before] == "newest"


async def test_after_an_interrupted_refresh_nobody_claims_that_all_is_revoked(
    parts: Parts, lender: Lender
) -> None:
    named = await lender.authorized()
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE connections SET refresh_attempt = 'lost', refresh_started_at = now()"
            " WHERE connection_id = $1",
            named,
        )
    deleted = await delete_over_the_wire(lender, named)
    assert deleted.revocation == pb2.REVOCATION_FAILED
    assert "interrupted" in deleted.advice


async def test_what_cannot_be_decrypted_goes_too(parts: Parts, lender: Lender) -> None:
    named = await lender.authorized()
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE connections SET sealed_refresh_token = '\\x0102' WHERE connection_id = $1",
            named,
        )
    deleted = await delete_over_the_wire(lender, named)
    assert deleted.revocation == pb2.REVOCATION_FAILED
    assert "decrypted" in deleted.advice
    assert await state_of(lender, named) == "deleted"
