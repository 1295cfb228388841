"""Files with secrets: read when nobody else can, replaced as a whole, changed by one at a time."""

import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from services.shared.errors import UnavailableError
from services.shared.settings import UnusableFileError

_PRIVATE: Final = 0o600
_PRIVATE_FOLDER: Final = 0o700
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_BEYOND_A_MOUNTED_ONE: Final = stat.S_IWGRP | stat.S_IRWXO
_ROOT: Final = 0
_LOCK_PAUSE_SECONDS: Final = 0.02

# Which file, and which state of it: a replaced one has another inode, a rewritten one another time.
Signature = tuple[int, int, int, int]


def signature(file: Path) -> Signature:
    """Returns what tells this state of the file from any other; raises OSError."""
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def read_private(file: Path) -> bytes:
    """Returns what is in `file`.

    Raises:
        UnusableFileError: it cannot be read, or others could.
    """
    try:
        with file.open("rb") as opened:
            if open_to_others(os.fstat(opened.fileno()), os.geteuid()):
                raise UnusableFileError(f"{file}: others can read it; run `chmod 600 {file}`")
            return opened.read()
    except OSError as error:
        raise UnusableFileError(f"{file}: {error.strerror}") from error


def open_to_others(found: os.stat_result, user: int) -> bool:
    """Returns whether others than `user` could read the file, or write to it.

    A secret that is mounted into a pod belongs to root, and is read by the pod's group: that group
    is nobody else's. Of every other file no group may have anything.
    """
    mounted = found.st_uid == _ROOT != user
    return bool(found.st_mode & (_BEYOND_A_MOUNTED_ONE if mounted else _OTHERS))


def ensure_private(file: Path, content: bytes) -> None:
    """Writes `content` if there is no such file; of two who do so at once, the first one's stands.

    Raises:
        UnusableFileError: it cannot be written there.
    """
    try:
        if file.exists():
            return
        file.parent.mkdir(parents=True, exist_ok=True, mode=_PRIVATE_FOLDER)
        fresh = _written(file, content)
        try:
            # A link, not a rename: it replaces nothing.
            os.link(fresh, file)
        except FileExistsError:
            return
        finally:
            fresh.unlink()
        _sync_folder(file.parent)
    except OSError as error:
        raise UnusableFileError(f"{file}: {error.strerror}") from error


def replace_private(file: Path, content: bytes) -> None:
    """Replaces the file as a whole, on the disk when this returns; raises OSError."""
    fresh = _written(file, content)
    try:
        fresh.replace(file)
    except OSError:
        fresh.unlink()
        raise
    _sync_folder(file.parent)


@contextmanager
def locked(file: Path, seconds: float) -> Iterator[None]:
    """Lets no other process of this machine into the block meanwhile. It blocks the thread.

    Raises:
        UnavailableError: another one is in it for longer than `seconds`.
    """
    lock = file.with_name(f".{file.name}.lock")
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    try:
        _acquire(descriptor, seconds)
        yield
    finally:
        # Closing it lets go of the lock.
        os.close(descriptor)


def _acquire(descriptor: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise UnavailableError("another process is changing the keyring") from error
            time.sleep(_LOCK_PAUSE_SECONDS)
        else:
            return


def _written(file: Path, content: bytes) -> Path:
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _PRIVATE)
    with os.fdopen(descriptor, "wb") as opened:
        opened.write(content)
        opened.flush()
        os.fsync(opened.fileno())
    return fresh


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
