"""Leases and revocations that meet in the database (P-37)."""

import asyncio
from datetime import timedelta

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.auth.domain import Acknowledgement
from services.auth.revocation_store import hold_last_revocation, purge_revocations
from services.auth.watcher_store import lease_trust, purge_watchers, read_watchers
from services.shared.postgres import Database, open_database
from tests.conftest import StartMesh
from tests.databases import SERVICES
from tests.mesh import PATIENCE_SECONDS, Mesh, bearer, fresh_id

pytestmark = pytest.mark.promise("P-37")
MIGRATIONS = SERVICES / "auth" / "migrations"
LEASE = timedelta(seconds=3)


async def revoke(mesh: Mesh, customer_key: str, key_id: str) -> pb2.RevokeKeyResponse:
    return await mesh.stub(AuthServiceStub, "auth").RevokeKey(
        pb2.RevokeKeyRequest(key_id=key_id), metadata=bearer(customer_key)
    )


async def someone_waits_for_a_lock(database: Database) -> bool:
    return bool(
        await database.pool.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
    )


async def test_a_lease_that_is_just_being_granted_is_waited_for(start_mesh: StartMesh) -> None:
    async with (
        start_mesh({}, ("auth",)) as own,
        open_database(own.settings["auth"], "auth", MIGRATIONS) as database,  # type: ignore[arg-type]
    ):
        customer = await own.customer()
        key = await own.key(customer)
        async with database.service() as connection:
            # Another replica of auth, between reading what was revoked and committing the lease.
            last = await hold_last_revocation(connection)
            await lease_trust(connection, [Acknowledgement("peer", "w" * 16, last)], last, LEASE)
            revoking = asyncio.create_task(revoke(own, customer.key, key.key_id))
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await someone_waits_for_a_lock(database):
                    assert not revoking.done()
                    await asyncio.sleep(0.01)
        _, watchers = await committed(database)
        revoked = await revoking
    assert revoked.effect.effective_at.ToNanoseconds() >= watchers["w" * 16]


async def committed(database: Database) -> tuple[int, dict[str, int]]:
    """Returns the database's time, and until when each watcher has a lease; in nanoseconds."""
    async with database.service() as connection:
        at, watchers = await read_watchers(connection)
    until = {each.watcher_id: int(each.leased_until.timestamp()) * 10**9 for each in watchers}
    return int(at.timestamp()) * 10**9, until


async def test_who_has_missed_what_is_not_kept_any_more_forgets_everything(
    start_mesh: StartMesh,
) -> None:
    async with (
        start_mesh({}, ("auth",)) as own,
        open_database(own.settings["auth"], "auth", MIGRATIONS) as database,  # type: ignore[arg-type]
    ):
        customer = await own.customer()
        for _ in range(3):
            await revoke(own, customer.key, (await own.key(customer)).key_id)
        async with database.service() as connection:
            await purge_revocations(connection, kept_seconds=0)
            await purge_watchers(connection, kept_seconds=0)
        stub = own.stub(AuthServiceStub, "auth", "ratelimit")
        answers = [
            await stub.AcknowledgeRevocations(
                pb2.AcknowledgeRevocationsRequest(watcher_id=fresh_id(), sequence=sequence)
            )
            for sequence in (0, 3)
        ]
    assert [answer.forget_all for answer in answers] == [True, False]
    assert {answer.sequence for answer in answers} == {3}
