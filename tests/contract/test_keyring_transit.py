"""Keys in the transit engine of a real OpenBao."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local.files import write_private
from services.shared.crypto import DataKeyId, KekId, KeyBinding, UnknownKekError
from services.shared.errors import (
    FailedPreconditionError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.shared.ids import TenantId
from services.shared.keyring import open_keyring
from services.shared.settings import UnusableFileError
from tests.keyrings import fresh_key, transit_settings
from tests.open_bao import OpenBao, open_bao

BOUND = KeyBinding(TenantId("ten_a"), DataKeyId("dek_a"))
DATA_KEY = fresh_key()


@pytest.fixture(scope="module")
async def bao(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OpenBao]:
    async with open_bao(tmp_path_factory.mktemp("bao") / "server") as server:
        yield server


def make_readable(file: Path) -> Path:
    file.chmod(0o644)
    return file


async def test_a_missing_key_is_made_and_cannot_be_taken_out(bao: OpenBao) -> None:
    settings = transit_settings(bao)
    async with open_keyring(settings) as keys:
        assert await keys.current() == f"kek_{settings.keyring_transit_key}.v1"
    made = await bao.key(settings.keyring_transit_key)
    assert made["type"] == "aes256-gcm96"
    assert not made["exportable"]
    assert not made["allow_plaintext_backup"]


async def test_a_key_that_is_there_stays_as_it_is(bao: OpenBao) -> None:
    settings = transit_settings(bao)
    async with open_keyring(settings) as keys:
        await keys.create()
    async with open_keyring(settings) as keys:
        assert (await keys.current()).endswith(".v2")


@pytest.mark.parametrize("wrong", [{"type": "ed25519"}, {"type": "aes256-gcm96", "derived": True}])
async def test_a_key_of_another_type_stops_the_start(
    bao: OpenBao, wrong: dict[str, object]
) -> None:
    settings = transit_settings(bao)
    await bao.ask("POST", f"transit/keys/{settings.keyring_transit_key}", **wrong)
    with pytest.raises(UnusableFileError, match="must be of type aes256-gcm96"):
        async with open_keyring(settings):
            pass


async def test_versions_are_destroyed_the_oldest_first_and_never_the_current_one(
    bao: OpenBao,
) -> None:
    settings = transit_settings(bao)
    async with open_keyring(settings) as keys:
        first = await keys.current()
        second, third = await keys.create(), await keys.create()
        for refused_id, told in ((third, "the current"), (second, f"the oldest first.*{first}")):
            with pytest.raises(FailedPreconditionError, match=told) as refused:
                await keys.destroy(refused_id)
            assert refused.value.reason is Reason.KEY_ENCRYPTION_KEY_IN_USE
        assert list(await keys.known()) == [third, second, first]
        await keys.destroy(first)
        assert list(await keys.known()) == [third, second]
        for gone in (first, KekId(f"{third}9"), KekId("kek_other.v1"), KekId("kek_nobody")):
            with pytest.raises(NotFoundError):
                await keys.destroy(gone)
    left = await bao.key(settings.keyring_transit_key)
    assert (left["min_available_version"], left["min_decryption_version"]) == (2, 2)


async def test_a_destruction_that_was_interrupted_is_completed_by_the_next_one(
    bao: OpenBao,
) -> None:
    settings = transit_settings(bao)
    name = settings.keyring_transit_key
    async with open_keyring(settings) as keys:
        first, wrapped = await keys.wrap(DATA_KEY, BOUND)
        await keys.create()
        await keys.create()
        # Disallowed and not trimmed, and more than we asked for: that stays so.
        await bao.ask("POST", f"transit/keys/{name}/config", min_encryption_version=3)
        await bao.ask("POST", f"transit/keys/{name}/config", min_decryption_version=3)
        with pytest.raises(UnknownKekError):
            await keys.unwrap(first, wrapped, BOUND)
        await keys.destroy(first)
        left = await bao.key(name)
        assert left["min_available_version"] == 2
        assert (left["min_decryption_version"], left["min_encryption_version"]) == (3, 3)


async def test_a_renewed_token_counts_from_the_next_call(bao: OpenBao, tmp_path: Path) -> None:
    await bao.ask(
        "POST",
        "sys/policies/acl/keyring",
        policy='path "transit/*" { capabilities = ["create", "read", "update"] }',
    )
    token = await bao.token("keyring")
    file = write_private(tmp_path / "token", token)
    settings = transit_settings(bao).model_copy(update={"keyring_transit_token_file": file})
    async with open_keyring(settings) as keys:
        kek, wrapped = await keys.wrap(DATA_KEY, BOUND)
        await bao.ask("POST", "auth/token/revoke", token=token)
        with pytest.raises(UnavailableError):
            await keys.unwrap(kek, wrapped, BOUND)
        write_private(file, await bao.token("keyring"))
        # Whichever of the connections it is.
        opened = await asyncio.gather(*(keys.unwrap(kek, wrapped, BOUND) for _ in range(16)))
        assert set(opened) == {DATA_KEY}
        make_readable(file)
        with pytest.raises(UnavailableError):
            await keys.wrap(DATA_KEY, BOUND)


async def test_a_bad_token_file_or_a_plaintext_url_stops_the_start(
    bao: OpenBao, tmp_path: Path
) -> None:
    open_file = make_readable(write_private(tmp_path / "token", bao.root_token))
    two = write_private(tmp_path / "two", f"{bao.root_token}\n{bao.root_token}")
    none = write_private(tmp_path / "empty", "\n")
    for update, told in (
        ({"keyring_transit_token_file": two}, "write a token into it, and nothing else"),
        ({"keyring_transit_token_file": none}, "write a token into it, and nothing else"),
        ({"keyring_transit_token_file": open_file}, "chmod 600"),
        ({"keyring_transit_token_file": tmp_path / "none"}, "No such file"),
        ({"keyring_transit_url": "http://bao.example:8200"}, "https, or http on loopback"),
        ({"keyring_transit_url": "http://127.0.0.1.example"}, "https, or http on loopback"),
    ):
        with pytest.raises(UnusableFileError, match=told):
            async with open_keyring(transit_settings(bao).model_copy(update=update)):
                pass


async def test_an_engine_that_is_away_or_silent_is_unavailable_and_not_unreadable(
    bao: OpenBao,
) -> None:
    settings = transit_settings(bao)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        late = settings.model_copy(
            update={
                "keyring_transit_url": f"http://127.0.0.1:{port}",
                "keyring_transit_timeout_seconds": 0.2,
            }
        )
        with pytest.raises(UnavailableError):
            async with open_keyring(late):
                pass
    with pytest.raises(UnavailableError):
        async with open_keyring(late):
            pass


async def test_without_the_engine_nothing_is_called_unreadable(bao: OpenBao) -> None:
    settings = transit_settings(bao)
    async with open_keyring(settings) as keys:
        kek, wrapped = await keys.wrap(DATA_KEY, BOUND)
        await bao.ask("DELETE", "sys/mounts/transit")
        try:
            with pytest.raises(UnavailableError):
                await keys.unwrap(kek, wrapped, BOUND)
            with pytest.raises(UnavailableError):
                await keys.wrap(DATA_KEY, BOUND)
        finally:
            await bao.ask("POST", "sys/mounts/transit", type="transit")


async def test_a_server_counts_for_whom_its_authority_vouches(tmp_path: Path) -> None:
    async with open_bao(tmp_path / "bao", tls=True) as bao:
        settings = transit_settings(bao)
        named = {"keyring_transit_ca_file": bao.authority}
        async with open_keyring(settings.model_copy(update=named)) as keys:
            kek, wrapped = await keys.wrap(DATA_KEY, BOUND)
            assert await keys.unwrap(kek, wrapped, BOUND) == DATA_KEY
        # Whom the system trusts has never heard of it.
        with pytest.raises(UnavailableError):
            async with open_keyring(settings):
                pass
        missing = {"keyring_transit_ca_file": tmp_path / "none"}
        with pytest.raises(UnusableFileError, match="No such file"):
            async with open_keyring(settings.model_copy(update=missing)):
                pass
