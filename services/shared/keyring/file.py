"""Keys in one file, which every process of the machine shares."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from services.shared.crypto import KekId
from services.shared.errors import (
    FailedPreconditionError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.shared.keyring.key_set import KeySet, kek_id, key_of, new_kek, text_of
from services.shared.keyring.private_files import (
    Signature,
    ensure_private,
    locked,
    read_private,
    replace_private,
    signature,
)
from services.shared.settings import UnusableFileError

_FORMAT: Final = 1
_LOCK_SECONDS: Final = 5.0


class FileSource:
    """A file of mode 0600: JSON, the keys by their ids, oldest first, and which is current."""

    holder = "file"

    def __init__(self, file: Path, lock_seconds: float = _LOCK_SECONDS) -> None:
        self._file = file
        # How long to wait for who else changes it.
        self._lock_seconds = lock_seconds

    def ensure(self) -> None:
        """Makes the file, with a first key in it, when it is missing.

        Raises:
            UnusableFileError: it cannot be written there.
        """
        first, key = new_kek()
        ensure_private(self._file, _written(KeySet(first, {first: key})))

    def state(self) -> Signature:
        """Returns what tells this state of the file from any other; raises OSError."""
        return signature(self._file)

    def read(self) -> KeySet:
        """Returns the keys in the file.

        Raises:
            UnusableFileError: others can read it, or it is not what we write.
        """
        keys = _read(read_private(self._file))
        if keys is None:
            raise UnusableFileError(
                f"{self._file}: it is no keyring; bring it back from a backup, for what is under"
                " its keys cannot be read without it"
            )
        return keys

    def create(self) -> KekId:
        """Adds a key to the file, which is current from now on.

        Raises:
            UnavailableError: the file cannot be changed now.
        """
        fresh, key = new_kek()
        with _changing(self._file, self._lock_seconds):
            keys = self.read()
            replace_private(self._file, _written(KeySet(fresh, {**keys.keys, fresh: key})))
        return fresh

    def destroy(self, kek: KekId) -> None:
        """Takes a key out of the file.

        Raises:
            NotFoundError: it is not in there.
            FailedPreconditionError: it is the current one.
            UnavailableError: the file cannot be changed now.
        """
        with _changing(self._file, self._lock_seconds):
            keys = self.read()
            if kek not in keys.keys:
                raise NotFoundError("key-encryption key")
            if kek == keys.current:
                raise FailedPreconditionError(
                    "it is the current key-encryption key", Reason.KEY_ENCRYPTION_KEY_IN_USE
                )
            left = {other: key for other, key in keys.keys.items() if other != kek}
            replace_private(self._file, _written(KeySet(keys.current, left)))


@contextmanager
def _changing(file: Path, seconds: float) -> Iterator[None]:
    try:
        with locked(file, seconds):
            yield
    except (OSError, UnusableFileError) as error:
        raise UnavailableError("the keyring's file cannot be changed now") from error


def _written(keys: KeySet) -> bytes:
    listed = {kek: text_of(key) for kek, key in keys.keys.items()}
    document = {"version": _FORMAT, "current": keys.current, "keys": listed}
    return (json.dumps(document, indent=1) + "\n").encode()


def _read(content: bytes) -> KeySet | None:
    try:
        document = json.loads(content)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("version") != _FORMAT:
        return None
    keys = _keys(document.get("keys"))
    current = document.get("current")
    if not keys or not isinstance(current, str) or current not in keys:
        return None
    return KeySet(KekId(current), keys)


def _keys(listed: Any) -> Mapping[KekId, bytes] | None:
    if not isinstance(listed, dict):
        return None
    keys: dict[KekId, bytes] = {}
    for name, text in listed.items():
        kek, key = kek_id(name), key_of(str(text).encode())
        if kek is None or key is None:
            return None
        keys[kek] = key
    return keys
