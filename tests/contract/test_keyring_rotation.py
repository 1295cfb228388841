"""Rotating the key-encryption key under a working service, and destroying an old one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.shared.crypto import KekId
from services.shared.errors import FailedPreconditionError, Reason, UnavailableError
from services.shared.ids import TenantId
from services.shared.keyring import open_keyring
from services.shared.postgres import Database, open_database
from services.shared.settings import UnusableFileError
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
from tests.keyrings import file_holder, mounted_holder

# More than one batch.
TENANTS = [TenantId(f"ten_{number}") for number in range(40)]
FIRST = TENANTS[0]


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


@asynccontextmanager
async def held_batch(replica: Replica) -> AsyncIterator[asyncio.Task[bool]]:
    """Yields while a batch of the replica is under way; it is done when the block is left."""
    replica.keks.gate = asyncio.Event()
    replica.keks.reached.clear()
    batch = asyncio.create_task(replica.rewrapping.batch())
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await replica.keks.reached.wait()
            yield batch
    finally:
        replica.keks.gate.set()
        assert await batch


@pytest.mark.promise("P-09")
async def test_after_a_rotation_all_is_under_the_new_key_and_reads_as_before(
    replica: Replica,
) -> None:
    sealed = await sealed_for(replica, TENANTS)
    old = await replica.keks.current()
    new, to_wrap = await replica.keyring.rotate()
    assert (new != old, to_wrap) == (True, len(TENANTS))
    await replica.wrap_all()
    assert await wrapped_under(replica.database) == {new: sorted(TENANTS)}
    await assert_readable(replica, sealed)
    status = await replica.keyring.status()
    assert [(key.kek_id, key.current, key.data_keys, key.usable) for key in status.keys] == [
        (new, True, len(TENANTS), True),
        (old, False, 0, True),
    ]
    assert (status.holder, status.to_wrap, status.unreadable) == ("file", 0, 0)


async def test_two_replicas_share_the_work_and_neither_waits_for_the_other(
    replica: Replica,
) -> None:
    await sealed_for(replica, TENANTS)
    new, _ = await replica.keyring.rotate()
    other = Replica(replica.database, WatchedKeys(replica.keks.keys))
    replica.keks.unwrapped.clear()
    async with held_batch(replica) as slow:
        await other.wrap_all()
        assert not slow.done()
    done = [*replica.keks.unwrapped, *other.keks.unwrapped]
    assert sorted(done) == sorted(TENANTS)
    assert other.keks.unwrapped
    assert set(await wrapped_under(replica.database)) == {new}


async def test_while_a_batch_is_held_its_tenants_read_and_write_as_ever(replica: Replica) -> None:
    sealed = await sealed_for(replica, TENANTS)
    await replica.keyring.rotate()
    other = Replica(replica.database, WatchedKeys(replica.keks.keys))
    async with held_batch(replica) as held:
        await assert_readable(other, sealed)
        for tenant in TENANTS:
            # A row that refers to the data key that is held.
            async with replica.database.tenant(tenant) as connection:
                await connection.execute(
                    "INSERT INTO webhooks (tenant_id, url, sealed_secret) VALUES ($1, 'u', $2)",
                    tenant,
                    sealed[tenant],
                )
        assert not held.done()


@pytest.mark.parametrize(
    "failure", [UnavailableError("away"), asyncio.CancelledError(), RuntimeError("killed")]
)
async def test_a_replica_that_dies_in_mid_batch_leaves_it_whole_to_the_others(
    replica: Replica, failure: BaseException
) -> None:
    sealed = await sealed_for(replica, TENANTS)
    old = await replica.keks.current()
    new, _ = await replica.keyring.rotate()
    replica.keks.unwrapped.clear()
    replica.keks.fails, replica.keks.after = failure, 10
    with pytest.raises(type(failure)):
        await replica.rewrapping.batch()
    assert set(await wrapped_under(replica.database)) == {old}
    other = Replica(replica.database, WatchedKeys(replica.keks.keys))
    await other.wrap_all()
    assert set(await wrapped_under(replica.database)) == {new}
    await assert_readable(other, sealed)


async def test_a_data_key_that_cannot_be_unwrapped_stops_no_other_and_is_shown(
    replica: Replica,
) -> None:
    sealed = await sealed_for(replica, TENANTS)
    old = await replica.keks.current()
    async with replica.database.service() as connection:
        await connection.execute(
            "UPDATE data_keys SET wrapped_key = set_byte(wrapped_key, 20,"
            " 255 - get_byte(wrapped_key, 20)) WHERE tenant_id = $1",
            FIRST,
        )
    new, _ = await replica.keyring.rotate()
    await replica.wrap_all()
    assert await wrapped_under(replica.database) == {
        old: [FIRST],
        new: sorted(set(TENANTS) - {FIRST}),
    }
    status = await replica.keyring.status()
    assert (status.to_wrap, status.unreadable) == (1, 1)
    await assert_readable(replica, {t: s for t, s in sealed.items() if t != FIRST})
    # Nor is it in the way of the next rotation, which tries it again.
    newer, _ = await replica.keyring.rotate()
    assert newer != new
    assert (await replica.keyring.status()).unreadable == 0
    await replica.wrap_all()
    assert sorted(await wrapped_under(replica.database)) == sorted({old, newer})


async def test_rotations_asked_for_at_once_or_meanwhile_make_one_key(replica: Replica) -> None:
    await sealed_for(replica, TENANTS[:3])
    keyring = replica.keyring
    answers = await asyncio.gather(*(keyring.rotate() for _ in range(6)))
    answers.append(await keyring.rotate())
    assert len(set(answers)) == 1
    assert len(await replica.keks.known()) == 2
    await replica.wrap_all()
    again, to_wrap = await keyring.rotate()
    assert (again, to_wrap) != answers[0]
    assert len(await replica.keks.known()) == 3


async def test_a_mounted_keyring_is_wrapped_under_what_its_owner_made_current(
    database: Database, tmp_path: Path
) -> None:
    holder = mounted_holder(tmp_path)
    async with open_keyring(holder.settings) as keys:
        replica = Replica(database, WatchedKeys(keys))
        sealed = await sealed_for(replica, TENANTS[:3])
        old = await keys.current()
        assert await replica.keyring.rotate() == (old, 0)
        new = await holder.rotate(keys)
        # Nothing is wrapped anew before it is asked for: other replicas may not have the key yet.
        await replica.wrap_all()
        assert set(await wrapped_under(database)) == {old}
        assert await replica.keyring.rotate() == (new, 3)
        # Whoever reads an older keyring does not wrap back.
        late = Replica(database, WatchedKeys(keys, current_seen=old))
        await replica.wrap_all()
        await late.wrap_all()
        assert set(await wrapped_under(database)) == {new}
        with pytest.raises(FailedPreconditionError) as refused:
            await replica.keyring.destroy(old)
        assert refused.value.reason is Reason.KEYRING_READ_ONLY
        await assert_readable(replica, sealed)
        # A refusal leaves no trace: `late` can still make a data key under the old one.
        await assert_can_be_used(database, old)


async def assert_can_be_used(database: Database, kek: KekId) -> None:
    async with database.service() as connection:
        assert await connection.fetchval(
            "SELECT usable FROM key_encryption_keys WHERE kek_id = $1", kek
        )


async def test_a_keyring_that_has_none_of_the_keys_stops_the_start(
    replica: Replica, tmp_path: Path
) -> None:
    await replica.keyring.verify()
    old = await replica.keks.current()
    await sealed_for(replica, TENANTS[:2])
    await replica.keyring.verify()
    async with open_keyring(file_holder(tmp_path / "another").settings) as other:
        wrong = Replica(replica.database, WatchedKeys(other))
        with pytest.raises(UnusableFileError, match=f"none of the keys .* as {old}: bring it back"):
            await wrong.keyring.verify()
        with pytest.raises(UnavailableError, match="not at hand"):
            await wrong.data_keys.existing(FIRST)
        # Some can be read by now: who starts serves them, and shows what is missing.
        await sealed_for(wrong, TENANTS[2:3])
        await wrong.keyring.verify()
        shown = {key.kek_id: key.usable for key in (await wrong.keyring.status()).keys}
        assert shown == {old: False, await other.current(): True}
