"""Destroying a key-encryption key: on purpose alone, and never from under a data key (P-09)."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.shared import data_key_store
from services.shared.crypto import KekId, KeyBinding, WrappedKey, new_data_key
from services.shared.data_keys import DataKeys
from services.shared.errors import FailedPreconditionError, NotFoundError, Reason, UnavailableError
from services.shared.ids import TenantId
from services.shared.keyring import open_keyring
from services.shared.postgres import Database, open_database
from tests.databases import Databases
from tests.keyring_replicas import (
    MIGRATIONS,
    PATIENCE_SECONDS,
    Replica,
    WatchedKeys,
    assert_readable,
    forget_all,
    sealed_for,
    wrapped_under,
)
from tests.keyrings import file_holder

FIRST, SECOND = TenantId("ten_a"), TenantId("ten_b")


@pytest.fixture(scope="module")
async def opened(databases: Databases) -> AsyncIterator[Database]:
    settings = await databases.fresh("credentials")
    async with open_database(settings, "credentials", MIGRATIONS) as database:
        yield database


@pytest.fixture
async def database(opened: Database) -> Database:
    """The module's database, as if nothing had been in it."""
    await forget_all(opened)
    return opened


@pytest.fixture
async def replica(database: Database, tmp_path: Path) -> AsyncIterator[Replica]:
    async with open_keyring(file_holder(tmp_path).settings) as keys:
        yield Replica(database, WatchedKeys(keys))


async def expect_in_use(replica: Replica, kek: KekId) -> None:
    with pytest.raises(FailedPreconditionError) as refused:
        await replica.keyring.destroy(kek)
    assert refused.value.reason is Reason.KEY_ENCRYPTION_KEY_IN_USE
    assert kek in await replica.keks.known()


async def kept_key(database: Database, tenant: TenantId) -> WrappedKey:
    async with database.tenant(tenant) as connection:
        key = await data_key_store.get_data_key(connection, tenant)
    assert key is not None
    return key


async def wrapped_by(replica: Replica, tenant: TenantId) -> WrappedKey:
    """Returns a new data key as a replica keeps it that has not heard of anything since."""
    data_key_id, data_key = new_data_key()
    kek, wrapped = await replica.keks.wrap(data_key, KeyBinding(tenant, data_key_id))
    return WrappedKey(data_key_id, kek, wrapped)


async def test_neither_the_current_key_nor_one_with_data_keys_is_destroyed(
    replica: Replica,
) -> None:
    sealed = await sealed_for(replica, [FIRST])
    old = await replica.keks.current()
    await expect_in_use(replica, old)
    await replica.keyring.rotate()
    await expect_in_use(replica, old)
    # A refusal changed nothing: the rotation goes on, and then it may end.
    await replica.wrap_all()
    await replica.keyring.destroy(old)
    assert old not in await replica.keks.known()
    await assert_readable(replica, sealed)
    assert [key.kek_id for key in (await replica.keyring.status()).keys] == [
        await replica.keks.current()
    ]


async def test_of_the_current_key_the_holder_is_not_even_asked(replica: Replica) -> None:
    replica.keks.fails = AssertionError("asked")
    with pytest.raises(FailedPreconditionError, match="rotate first"):
        await replica.keyring.destroy(await replica.keks.current())


async def test_destroying_it_again_is_fine_and_destroying_what_never_was_is_not(
    replica: Replica,
) -> None:
    await sealed_for(replica, [FIRST])
    old = await replica.keks.current()
    await replica.keyring.rotate()
    await replica.wrap_all()
    await replica.keyring.destroy(old)
    await replica.keyring.destroy(old)
    for unknown in ("kek_nobody", "../keyring", "kek_"):
        with pytest.raises(NotFoundError):
            await replica.keyring.destroy(KekId(unknown))
    async with replica.database.service() as connection:
        known = await connection.fetch("SELECT kek_id FROM key_encryption_keys")
    assert {row["kek_id"] for row in known} == {old, await replica.keks.current()}


async def test_a_key_that_no_data_key_was_ever_under_can_be_destroyed(replica: Replica) -> None:
    old = await replica.keks.current()
    await replica.keyring.rotate()
    await replica.keyring.destroy(old)
    assert old not in await replica.keks.known()


@pytest.mark.promise("P-09")
async def test_backups_open_until_the_old_key_is_destroyed(
    replica: Replica, databases: Databases
) -> None:
    sealed = await sealed_for(replica, [FIRST])
    backup = await kept_key(replica.database, FIRST)
    old = backup.kek_id
    await replica.keyring.rotate()
    await replica.wrap_all()
    settings = await databases.fresh("credentials")
    async with open_database(settings, "credentials", MIGRATIONS) as restored:
        async with restored.tenant(FIRST) as connection:
            await data_key_store.put_data_key(connection, FIRST, backup)
        await assert_readable(Replica(restored, replica.keks), sealed)
        await replica.keyring.destroy(old)
        with pytest.raises(UnavailableError, match="not at hand"):
            await DataKeys(restored, replica.keks).existing(FIRST)
    await assert_readable(replica, sealed)


@pytest.mark.promise("P-09")
async def test_a_replica_that_lags_behind_puts_no_data_key_under_a_destroyed_key(
    replica: Replica,
) -> None:
    stale = await wrapped_by(replica, FIRST)
    await replica.keyring.rotate()
    await replica.keyring.destroy(stale.kek_id)
    with pytest.raises(data_key_store.KekEndedError):
        async with replica.database.tenant(FIRST) as connection:
            await data_key_store.put_data_key(connection, FIRST, stale)
    # Nor does anyone else, whoever writes it.
    with pytest.raises(asyncpg.ForeignKeyViolationError):
        async with replica.database.service() as connection:
            await connection.execute(
                "INSERT INTO data_keys (tenant_id, data_key_id, kek_id, wrapped_key)"
                " VALUES ('ten_a', 'dek_a', $1, '')",
                stale.kek_id,
            )
    await assert_readable(replica, await sealed_for(replica, [FIRST]))


async def test_a_data_key_that_was_wrapped_just_before_is_wrapped_once_more(
    replica: Replica,
) -> None:
    old = await replica.keks.current()
    replica.keks.gate = asyncio.Event()
    making = asyncio.create_task(replica.data_keys.cipher(FIRST))
    other = Replica(replica.database, WatchedKeys(replica.keks.keys))
    async with asyncio.timeout(PATIENCE_SECONDS):
        # It is wrapped under the old key, and not written yet.
        await replica.keks.reached.wait()
        new, _ = await other.keyring.rotate()
        await other.keyring.destroy(old)
        replica.keks.gate.set()
        await making
    assert await wrapped_under(replica.database) == {new: [FIRST]}


async def test_a_data_key_that_is_being_written_keeps_its_key_from_being_destroyed(
    replica: Replica,
) -> None:
    stale = await wrapped_by(replica, FIRST)
    await replica.keyring.rotate()
    async with asyncio.timeout(PATIENCE_SECONDS):
        async with replica.database.tenant(FIRST) as connection:
            await data_key_store.put_data_key(connection, FIRST, stale)
            destroying = asyncio.create_task(replica.keyring.destroy(stale.kek_id))
            await waits_for_a_lock(replica.database)
        with pytest.raises(FailedPreconditionError, match="data keys are under it"):
            await destroying
    assert stale.kek_id in await replica.keks.known()
    await replica.wrap_all()
    await replica.keyring.destroy(stale.kek_id)


async def waits_for_a_lock(database: Database) -> None:
    while not await database.pool.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ):
        await asyncio.sleep(0.01)


async def test_a_destruction_that_was_interrupted_is_finished_by_the_next(
    replica: Replica,
) -> None:
    stale = await wrapped_by(replica, FIRST)
    await replica.keyring.rotate()
    replica.keks.fails = UnavailableError("away")
    with pytest.raises(UnavailableError):
        await replica.keyring.destroy(stale.kek_id)
    # It may be gone or not: nothing comes under it meanwhile.
    with pytest.raises(data_key_store.KekEndedError):
        async with replica.database.tenant(FIRST) as connection:
            await data_key_store.put_data_key(connection, FIRST, stale)
    replica.keks.fails = None
    await replica.keyring.destroy(stale.kek_id)
    assert stale.kek_id not in await replica.keks.known()


async def test_a_holder_that_refuses_leaves_the_key_as_it_was(replica: Replica) -> None:
    stale = await wrapped_by(replica, FIRST)
    await replica.keyring.rotate()
    refusal = FailedPreconditionError("not this one", Reason.KEY_ENCRYPTION_KEY_IN_USE)
    replica.keks.fails = refusal
    with pytest.raises(FailedPreconditionError, match="not this one"):
        await replica.keyring.destroy(stale.kek_id)
    replica.keks.fails = None
    async with replica.database.tenant(FIRST) as connection:
        assert await data_key_store.put_data_key(connection, FIRST, stale) == stale
    # Also one that data keys were under before.
    await replica.wrap_all()
    replica.keks.fails = refusal
    with pytest.raises(FailedPreconditionError, match="not this one"):
        await replica.keyring.destroy(stale.kek_id)
    replica.keks.fails = None
    again = WrappedKey(new_data_key()[0], stale.kek_id, stale.wrapped)
    async with replica.database.tenant(SECOND) as connection:
        assert await data_key_store.put_data_key(connection, SECOND, again) == again


async def test_a_tenant_can_name_a_key_and_change_none(replica: Replica) -> None:
    await sealed_for(replica, [FIRST])
    for statement in (
        "UPDATE key_encryption_keys SET usable = false",
        "DELETE FROM key_encryption_keys",
        "SELECT usable FROM key_encryption_keys",
        "INSERT INTO key_encryption_keys (kek_id, usable) VALUES ('kek_x', false)",
        "INSERT INTO key_encryption_keys (kek_id, chosen_at) VALUES ('kek_x', now())",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with replica.database.tenant(FIRST) as connection:
                await connection.execute(statement)
