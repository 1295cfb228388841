"""Keys in a file of this machine, and keys in a folder that is mounted."""

import asyncio
import base64
import json
import os
import stat
import sys
from pathlib import Path

import pytest

from services.shared.crypto import DataKeyId, KekId, KeyBinding
from services.shared.errors import FailedPreconditionError, NotFoundError, Reason, UnavailableError
from services.shared.ids import TenantId
from services.shared.keyring import open_keyring
from services.shared.keyring.file import FileSource
from services.shared.keyring.private_files import locked, open_to_others
from services.shared.keyring.settings import KeyringSettings
from services.shared.settings import UnusableFileError
from tests.keyrings import MountedSecret, fresh_key

BOUND = KeyBinding(TenantId("ten_a"), DataKeyId("dek_a"))
DATA_KEY = fresh_key()
PROCESSES, ROTATIONS = 3, 5
# One process of several: it opens the keyring, and rotates it again and again.
ROTATING = f"""
import asyncio, sys
from pathlib import Path
from services.shared.keyring import open_keyring
from services.shared.keyring.settings import KeyringSettings

async def main():
    async with open_keyring(KeyringSettings(keyring_file=Path(sys.argv[1]))) as keys:
        for _ in range({ROTATIONS}):
            print(await keys.create())

asyncio.run(main())
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def content(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def put(file: Path, text: bytes, permissions: int = 0o600) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(text)
    file.chmod(permissions)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "secrets" / "keyring"


def by_file(file: Path) -> KeyringSettings:
    return KeyringSettings(keyring_file=file)


@pytest.fixture
def secret(tmp_path: Path) -> MountedSecret:
    made = MountedSecret(tmp_path / "mounted")
    made.publish()
    return made


def by_folder(secret: MountedSecret) -> KeyringSettings:
    return KeyringSettings(keyring="mounted", keyring_folder=secret.folder)


async def test_a_missing_file_is_made_for_its_owner_alone(file: Path) -> None:
    async with open_keyring(by_file(file)) as keys:
        (only,) = await keys.known()
    assert only.startswith("kek_")
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert names(file.parent) == ["keyring"]


async def test_of_many_who_start_at_once_all_have_the_first_ones_key(file: Path) -> None:
    sources = [FileSource(file) for _ in range(16)]
    await asyncio.gather(*(asyncio.to_thread(source.ensure) for source in sources))
    assert len({source.read().current for source in sources}) == 1
    assert names(file.parent) == ["keyring"]


async def test_processes_that_rotate_at_once_lose_no_key(file: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ROTATING, str(file)),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
        )
        for _ in range(PROCESSES)
    ]
    outputs = [(await process.communicate())[0].decode().split() for process in processes]
    made = {kek for output in outputs for kek in output}
    assert len(made) == PROCESSES * ROTATIONS
    async with open_keyring(by_file(file)) as keys:
        known = await keys.known()
    assert made < set(known)
    assert len(known) == len(made) + 1
    assert known[0] in {output[-1] for output in outputs}


@pytest.mark.parametrize("permissions", [0o640, 0o604, 0o620, 0o660, 0o666])
async def test_a_file_that_others_can_read_stops_the_start_and_says_what_to_do(
    file: Path, permissions: int
) -> None:
    FileSource(file).ensure()
    put(file, content(file), permissions)
    with pytest.raises(UnusableFileError, match=f"chmod 600 {file}"):
        async with open_keyring(by_file(file)):
            pass


def documents() -> dict[str, bytes]:
    key = base64.b64encode(fresh_key()).decode()
    good = {"version": 1, "current": "kek_a", "keys": {"kek_a": key}}
    return {
        "nothing": b"",
        "no json": b"kek_a",
        "another format": json.dumps(good | {"version": 2}).encode(),
        "no current": json.dumps(good | {"current": "kek_b"}).encode(),
        "no keys": json.dumps(good | {"keys": {}}).encode(),
        "a list": json.dumps(good | {"current": ["kek_a"]}).encode(),
        "a short key": json.dumps(good | {"keys": {"kek_a": key[:20]}}).encode(),
        "another name": json.dumps(good | {"keys": {"kek_a": key, "../x": key}}).encode(),
        "cut off": json.dumps(good).encode()[:-5],
    }


@pytest.mark.parametrize("name", list(documents()))
async def test_a_file_that_is_no_keyring_is_refused_and_left_as_it_is(
    file: Path, name: str
) -> None:
    document = documents()[name]
    put(file, document)
    with pytest.raises(UnusableFileError, match="bring it back from a backup"):
        async with open_keyring(by_file(file)):
            pass
    assert content(file) == document


async def test_a_file_that_breaks_later_changes_nothing_for_who_has_read_it(file: Path) -> None:
    async with open_keyring(by_file(file)) as keys:
        kek, wrapped = await keys.wrap(DATA_KEY, BOUND)
        good = content(file)
        for broken, permissions in ((b"{", 0o600), (good, 0o644), (b"", 0o600)):
            put(file, broken, permissions)
            assert await keys.unwrap(kek, wrapped, BOUND) == DATA_KEY
            # But nothing is written on top of what nobody can read.
            with pytest.raises(UnavailableError):
                await keys.create()
            assert content(file) == broken


async def test_a_file_destroys_neither_its_current_key_nor_one_that_it_has_not(file: Path) -> None:
    async with open_keyring(by_file(file)) as keys:
        before = content(file)
        with pytest.raises(FailedPreconditionError) as refused:
            await keys.destroy(await keys.current())
        assert refused.value.reason is Reason.KEY_ENCRYPTION_KEY_IN_USE
        with pytest.raises(NotFoundError):
            await keys.destroy(KekId("kek_nobody"))
        assert content(file) == before


def test_who_finds_the_file_locked_for_long_gives_up(file: Path) -> None:
    source = FileSource(file, lock_seconds=0.05)
    source.ensure()
    with locked(file, 0.05), pytest.raises(UnavailableError, match="another process"):
        source.create()
    assert source.create() == source.read().current


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"kek_1": b"AAAA"}, "kek_1: it must hold 32 random bytes"),
        ({"kek_1": b"not base64!"}, "kek_1: it must hold 32 random bytes"),
        ({"kek_1": b""}, "openssl rand -base64 32"),
        ({"current": b"kek_2"}, "current: it names kek_2, which is not in the folder"),
        ({"current": b""}, "current: write the id of a key into it"),
        ({"current": b"../../etc/passwd"}, "current: write the id of a key into it"),
    ],
)
async def test_a_mounted_folder_that_cannot_be_used_stops_the_start(
    tmp_path: Path, files: dict[str, bytes], told: str
) -> None:
    secret = MountedSecret(tmp_path / "mounted")
    secret.project({"kek_1": base64.b64encode(fresh_key()), "current": b"kek_1"} | files)
    with pytest.raises(UnusableFileError, match=told):
        async with open_keyring(by_folder(secret)):
            pass


async def test_a_mounted_folder_without_current_or_that_is_missing_stops_the_start(
    tmp_path: Path,
) -> None:
    secret = MountedSecret(tmp_path / "mounted")
    with pytest.raises(UnusableFileError, match="mounted: No such file"):
        async with open_keyring(by_folder(secret)):
            pass
    secret.project({"kek_1": base64.b64encode(fresh_key())})
    with pytest.raises(UnusableFileError, match="current: No such file"):
        async with open_keyring(by_folder(secret)):
            pass


async def test_plain_files_in_a_folder_will_do(tmp_path: Path) -> None:
    put(tmp_path / "kek_mine.2026-11", base64.b64encode(fresh_key()))
    put(tmp_path / "current", b"kek_mine.2026-11\n")
    put(tmp_path / "README", b"not a key")
    async with open_keyring(KeyringSettings(keyring="mounted", keyring_folder=tmp_path)) as keys:
        assert await keys.known() == ("kek_mine.2026-11",)


async def test_a_mounted_keyring_is_its_owners_to_change(secret: MountedSecret) -> None:
    async with open_keyring(by_folder(secret)) as keys:
        for change, told in (
            (keys.create(), "add one to the secret"),
            (keys.destroy(KekId("kek_1")), "remove it from the secret"),
        ):
            with pytest.raises(FailedPreconditionError, match=told) as refused:
                await change
            assert refused.value.reason is Reason.KEYRING_READ_ONLY


async def test_a_mounted_folder_that_breaks_later_changes_nothing_for_who_has_read_it(
    secret: MountedSecret,
) -> None:
    async with open_keyring(by_folder(secret)) as keys:
        kek, wrapped = await keys.wrap(DATA_KEY, BOUND)
        secret.project({"kek_1": b"short", "current": b"kek_1"})
        assert await keys.unwrap(kek, wrapped, BOUND) == DATA_KEY
        secret.publish()
        assert await keys.unwrap(kek, wrapped, BOUND) == DATA_KEY


# As seen by user 65532, whom a pod runs as.
@pytest.mark.parametrize(
    ("owner", "permissions", "open_to"),
    [
        pytest.param(0, 0o440, False, id="mounted for the pod's group"),
        pytest.param(0, 0o640, False, id="mounted, and root may write"),
        pytest.param(0, 0o460, True, id="mounted, and the group may write"),
        pytest.param(0, 0o444, True, id="mounted for everybody"),
        pytest.param(65532, 0o600, False, id="its own"),
        pytest.param(65532, 0o640, True, id="its own, and a group may read"),
        pytest.param(1000, 0o640, True, id="somebody else's"),
    ],
)
def test_a_secret_that_is_mounted_may_be_read_by_the_group_of_the_pod(
    owner: int, permissions: int, open_to: bool
) -> None:
    found = os.stat_result((stat.S_IFREG | permissions, 1, 1, 1, owner, 65532, 1, 0, 0, 0))
    assert open_to_others(found, 65532) is open_to


def test_root_keeps_its_own_files_to_itself() -> None:
    found = os.stat_result((stat.S_IFREG | 0o640, 1, 1, 1, 0, 0, 1, 0, 0, 0))
    assert open_to_others(found, 0)
