"""What is true of every holder of key-encryption keys."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.shared.crypto import (
    DataKeyId,
    KekId,
    KeyBinding,
    UnknownKekError,
    UnreadableError,
    new_data_key,
)
from services.shared.ids import TenantId
from services.shared.keyring import open_keyring
from tests.keyrings import Holder, file_holder, fresh_key, mounted_holder, transit_holder
from tests.open_bao import OpenBao, open_bao

DATA_KEY_ID, DATA_KEY = new_data_key()[0], fresh_key()
BOUND = KeyBinding(TenantId("ten_a"), DATA_KEY_ID)


@pytest.fixture(scope="module")
async def bao(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OpenBao]:
    async with open_bao(tmp_path_factory.mktemp("bao") / "server") as server:
        yield server


@pytest.fixture(params=["file", "mounted", "transit"])
def holder(request: pytest.FixtureRequest, tmp_path: Path) -> Holder:
    if request.param == "transit":
        return transit_holder(request.getfixturevalue("bao"))
    return {"file": file_holder, "mounted": mounted_holder}[request.param](tmp_path)


async def test_a_data_key_comes_back_from_any_process_that_opens_the_same_keyring(
    holder: Holder,
) -> None:
    async with open_keyring(holder.settings) as here, open_keyring(holder.settings) as there:
        kek, wrapped = await here.wrap(DATA_KEY, BOUND)
        assert here.holder == holder.settings.keyring
        assert kek == await there.current()
        assert DATA_KEY not in wrapped
        assert await there.unwrap(kek, wrapped, BOUND) == DATA_KEY


@pytest.mark.promise("P-09")
async def test_a_wrapped_key_opens_only_as_it_was_and_for_whom_it_was_wrapped(
    holder: Holder,
) -> None:
    async with open_keyring(holder.settings) as keys:
        kek, wrapped = await keys.wrap(DATA_KEY, BOUND)
        other_id, other_key = new_data_key()
        _, other = await keys.wrap(other_key, KeyBinding(BOUND.tenant, other_id))
        flipped = bytes([wrapped[-1] ^ 1])
        for changed in (b"", wrapped[:-1], wrapped[:5], wrapped[:-1] + flipped, b"x" + wrapped):
            with pytest.raises(UnreadableError):
                await keys.unwrap(kek, changed, BOUND)
        for moved in (
            KeyBinding(TenantId("ten_b"), DATA_KEY_ID),
            KeyBinding(BOUND.tenant, DataKeyId("dek_other")),
            # The same characters, cut elsewhere.
            KeyBinding(TenantId("ten_ad"), DataKeyId(DATA_KEY_ID.removeprefix("d"))),
        ):
            with pytest.raises(UnreadableError):
                await keys.unwrap(kek, wrapped, moved)
        with pytest.raises(UnreadableError):
            await keys.unwrap(kek, other, BOUND)


@pytest.mark.promise("P-09")
async def test_a_wrapped_key_does_not_open_under_the_id_of_another_key(holder: Holder) -> None:
    async with open_keyring(holder.settings) as keys:
        _, wrapped = await keys.wrap(DATA_KEY, BOUND)
        new = await holder.rotate(keys)
        with pytest.raises(UnreadableError):
            await keys.unwrap(new, wrapped, BOUND)
        for unknown in ("kek_nobody", "", "kek_../keyring"):
            with pytest.raises(UnknownKekError):
                await keys.unwrap(KekId(unknown), wrapped, BOUND)


async def test_a_rotation_in_one_process_counts_in_every_other_at_once(holder: Holder) -> None:
    async with open_keyring(holder.settings) as here, open_keyring(holder.settings) as there:
        old, wrapped = await there.wrap(DATA_KEY, BOUND)
        new = await holder.rotate(here)
        assert await there.current() == new
        assert list(await there.known()) == [new, old]
        kek, again = await here.wrap(DATA_KEY, BOUND)
        assert kek == new
        assert await there.unwrap(new, again, BOUND) == DATA_KEY
        # What was wrapped before, as in a backup, opens as before.
        assert await there.unwrap(old, wrapped, BOUND) == DATA_KEY


async def test_what_is_under_a_destroyed_key_opens_nowhere_any_more(holder: Holder) -> None:
    async with open_keyring(holder.settings) as here, open_keyring(holder.settings) as there:
        old, wrapped = await there.wrap(DATA_KEY, BOUND)
        new = await holder.rotate(here)
        _, again = await here.wrap(DATA_KEY, BOUND)
        await holder.destroy(here, old)
        for keys in (here, there):
            assert list(await keys.known()) == [new]
            with pytest.raises(UnknownKekError):
                await keys.unwrap(old, wrapped, BOUND)
            assert await keys.unwrap(new, again, BOUND) == DATA_KEY
    async with open_keyring(holder.settings) as later:
        with pytest.raises(UnknownKekError):
            await later.unwrap(old, wrapped, BOUND)
