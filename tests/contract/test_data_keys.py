"""The data keys of tenants: made once, remembered for a while, gone when their row is."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.shared.crypto import UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.ids import TenantId
from services.shared.keyring import open_keyring
from services.shared.postgres import Database, open_database
from tests.databases import Databases
from tests.keyring_replicas import MIGRATIONS, PLACE, WatchedKeys, forget_all
from tests.keyrings import file_holder

FIRST, SECOND = TenantId("ten_a"), TenantId("ten_b")


@pytest.fixture(scope="module")
async def opened(databases: Databases) -> AsyncIterator[Database]:
    settings = await databases.fresh("credentials")
    async with open_database(settings, "credentials", MIGRATIONS) as database:
        yield database


@pytest.fixture
async def keks(tmp_path: Path) -> AsyncIterator[WatchedKeys]:
    async with open_keyring(file_holder(tmp_path).settings) as keys:
        yield WatchedKeys(keys)


@pytest.fixture
async def database(opened: Database) -> Database:
    await forget_all(opened)
    return opened


async def test_all_who_need_a_first_data_key_at_once_get_the_same_one(
    database: Database, keks: WatchedKeys
) -> None:
    replicas = [DataKeys(database, keks) for _ in range(3)]
    ciphers = await asyncio.gather(
        *(replica.cipher(FIRST) for replica in replicas for _ in range(10))
    )
    assert len({cipher.data_key_id for cipher in ciphers}) == 1
    sealed = ciphers[0].seal(PLACE, "secret")
    assert {cipher.open(PLACE, sealed) for cipher in ciphers} == {"secret"}
    # Once in each replica: the others waited for it.
    assert len(keks.unwrapped) == len(replicas)


async def test_a_data_key_is_remembered_until_it_is_forgotten(
    database: Database, keks: WatchedKeys
) -> None:
    data_keys = DataKeys(database, keks)
    assert await data_keys.existing(FIRST) is None
    cipher = await data_keys.cipher(FIRST)
    assert await data_keys.existing(FIRST) is cipher
    async with database.service() as connection:
        await connection.execute("DELETE FROM data_keys")
    assert await data_keys.existing(FIRST) is cipher
    data_keys.forget(FIRST)
    assert await data_keys.existing(FIRST) is None
    # A new one opens nothing of the old one's.
    sealed = cipher.seal(PLACE, "secret")
    with pytest.raises(UnreadableError):
        (await data_keys.cipher(FIRST)).open(PLACE, sealed)


@pytest.mark.promise("P-09")
async def test_a_wrapped_data_key_that_is_moved_to_another_tenant_does_not_open(
    database: Database, keks: WatchedKeys
) -> None:
    data_keys = DataKeys(database, keks)
    await data_keys.cipher(FIRST)
    await data_keys.cipher(SECOND)
    async with database.service() as connection:
        await connection.execute("DELETE FROM data_keys WHERE tenant_id = $1", SECOND)
        await connection.execute("UPDATE data_keys SET tenant_id = $1", SECOND)
    fresh = DataKeys(database, keks)
    assert await fresh.existing(FIRST) is None
    for asked in (fresh.existing, fresh.cipher):
        with pytest.raises(UnreadableError):
            await asked(SECOND)


async def test_a_keyed_hash_is_its_tenants_and_its_purposes(
    database: Database, keks: WatchedKeys
) -> None:
    data_keys = DataKeys(database, keks)
    first, second = await data_keys.cipher(FIRST), await data_keys.cipher(SECOND)
    hashes = {
        cipher.keyed_hash(purpose, text)
        for cipher in (first, second)
        for purpose in ("token", "request")
        for text in ("a", "b")
    }
    assert len(hashes) == 8
    assert first.keyed_hash("token", "a") in hashes
    again = await DataKeys(database, keks).cipher(FIRST)
    assert again.keyed_hash("token", "a") == first.keyed_hash("token", "a")
