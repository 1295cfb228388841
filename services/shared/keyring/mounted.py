"""Keys in a folder that is mounted from a secret, as Kubernetes does it."""

from collections.abc import Hashable
from pathlib import Path
from typing import Final, NoReturn

from services.shared.crypto import KEY_BYTES, KekId
from services.shared.errors import FailedPreconditionError, Reason
from services.shared.keyring.key_set import KeySet, kek_id, key_of
from services.shared.keyring.private_files import signature
from services.shared.settings import UnusableFileError, read_file

_CURRENT: Final = "current"
# The link that a projected volume swaps to change all of its files at once.
_GENERATION: Final = "..data"


class MountedSource:
    """A file for each key, named by its id, with its base64; `current` names one of them.

    Whoever owns the secret adds and removes keys; we cannot.
    """

    holder = "mounted"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def state(self) -> Hashable:
        """Returns what changes with any of the files; raises OSError."""
        folder = self._generation()
        return folder, tuple((file.name, signature(file)) for file in _files(folder))

    def read(self) -> KeySet:
        """Returns the keys in the folder, all of one generation of the secret.

        Raises:
            UnusableFileError: one of them, or which is current, cannot be used.
        """
        try:
            folder = self._generation()
            files = _files(folder)
        except OSError as error:
            raise UnusableFileError(f"{self._folder}: {error.strerror}") from error
        keys = {KekId(file.name): _key(file) for file in files if kek_id(file.name) is not None}
        named = self._folder / _CURRENT
        current = kek_id(read_file(folder / _CURRENT).decode(errors="replace").strip())
        if current is None:
            raise UnusableFileError(f"{named}: write the id of a key into it, as `kek_1`")
        if current not in keys:
            raise UnusableFileError(f"{named}: it names {current}, which is not in the folder")
        return KeySet(current, keys)

    def create(self) -> NoReturn:
        """Refuses; raises FailedPreconditionError."""
        raise FailedPreconditionError(
            "the keys are mounted: add one to the secret, wait until every replica has it, and"
            " name it in `current`",
            Reason.KEYRING_READ_ONLY,
        )

    def destroy(self, kek: KekId) -> NoReturn:
        """Refuses; raises FailedPreconditionError."""
        raise FailedPreconditionError(
            f"the keys are mounted: once no data key is under {kek}, remove it from the secret"
            " and from its copies",
            Reason.KEYRING_READ_ONLY,
        )

    def _generation(self) -> Path:
        link = self._folder / _GENERATION
        return (link if link.exists() else self._folder).resolve(strict=True)


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if not file.name.startswith("."))


def _key(file: Path) -> bytes:
    key = key_of(read_file(file))
    if key is None:
        raise UnusableFileError(
            f"{file}: it must hold {KEY_BYTES} random bytes as base64, as from"
            f" `openssl rand -base64 {KEY_BYTES}`"
        )
    return key
