"""A lock on a server directory that holds across processes and goes with its holder."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

_POLL_SECONDS = 0.005


@contextlib.asynccontextmanager
async def locked(directory: Path) -> AsyncIterator[Path]:
    """Holds the lock of `directory` and yields its file, which lies beside the directory.

    The kernel lets go of it when the holding process ends, however it ends.
    """
    path = directory.with_name(f".{directory.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            await _flock(descriptor)
            if _is_file(descriptor, path):
                yield path
                return
        finally:
            os.close(descriptor)


async def _flock(descriptor: int) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_POLL_SECONDS)
        else:
            return


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file: whoever removes a server removes its lock too."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
