"""Holders of key-encryption keys, and whoever owns a mounted secret."""

import base64
import secrets
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from services.shared.crypto import KekId, KeyEncryptionKeys
from services.shared.keyring.settings import KeyringSettings
from tests.canaries import MARK
from tests.open_bao import OpenBao


def fresh_key() -> bytes:
    """Returns a key of 256 bits, half of them random: its mark is in no output (P-09)."""
    return MARK.encode() + secrets.token_bytes(32 - len(MARK))


@dataclass
class MountedSecret:
    """A secret as it is projected into a folder: its files change all at once."""

    folder: Path
    keys: dict[str, bytes] = field(default_factory=lambda: {"kek_1": fresh_key()})
    current: str = "kek_1"
    _generation: int = 0

    def publish(self) -> None:
        """Puts what the secret holds now into the folder."""
        self.project(
            {name: base64.b64encode(key) + b"\n" for name, key in self.keys.items()}
            | {"current": f"{self.current}\n".encode()}
        )

    def project(self, files: dict[str, bytes]) -> None:
        """Puts the files into the folder, in place of those that were there."""
        self.folder.mkdir(exist_ok=True)
        link = self.folder / "..data"
        before = link.readlink() if link.is_symlink() else None
        self._generation += 1
        fresh = self.folder / f"..generation_{self._generation}"
        fresh.mkdir()
        for name, content in files.items():
            (fresh / name).write_bytes(content)
        coming = self.folder / "..coming"
        coming.symlink_to(fresh.name)
        coming.replace(link)
        for name in files:
            if not (self.folder / name).is_symlink():
                (self.folder / name).symlink_to(Path("..data") / name)
        if before is not None:
            shutil.rmtree(self.folder / before)

    async def rotate(self, _keys: KeyEncryptionKeys) -> KekId:
        """Returns the id of a new key, which is current."""
        self.current = f"kek_{len(self.keys) + 1}"
        self.keys[self.current] = fresh_key()
        self.publish()
        return KekId(self.current)

    async def remove(self, _keys: KeyEncryptionKeys, kek: KekId) -> None:
        """Takes a key away."""
        del self.keys[kek]
        self.publish()


@dataclass(frozen=True)
class Holder:
    """How to open one, and how a key is made current or destroyed there."""

    settings: KeyringSettings
    rotate: Callable[[KeyEncryptionKeys], Awaitable[KekId]]
    destroy: Callable[[KeyEncryptionKeys, KekId], Awaitable[None]]


def file_holder(folder: Path) -> Holder:
    """Returns a holder with a file of its own."""
    settings = KeyringSettings(keyring_file=folder / "keyring")
    return Holder(settings, lambda keys: keys.create(), lambda keys, kek: keys.destroy(kek))


def mounted_holder(folder: Path) -> Holder:
    """Returns a holder with a secret of its own."""
    secret = MountedSecret(folder / "mounted")
    secret.publish()
    settings = KeyringSettings(keyring="mounted", keyring_folder=secret.folder)
    return Holder(settings, secret.rotate, secret.remove)


def transit_settings(bao: OpenBao) -> KeyringSettings:
    """Returns the settings for a transit key of its own."""
    return KeyringSettings(
        keyring="transit",
        keyring_transit_url=bao.url,
        keyring_transit_key=f"key-{secrets.token_hex(4)}",
        keyring_transit_token_file=bao.token_file,
    )


def transit_holder(bao: OpenBao) -> Holder:
    """Returns a holder with a transit key of its own."""
    return Holder(
        transit_settings(bao), lambda keys: keys.create(), lambda keys, kek: keys.destroy(kek)
    )
