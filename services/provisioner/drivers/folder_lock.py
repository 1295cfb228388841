"""A lock on a server directory that holds across processes and goes with its holder."""

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Held:
    """A lock that is held.

    A program that is given the descriptor holds it too: when we are killed while it works on the
    directory, nobody else begins before it has ended.
    """

    file: Path
    descriptor: int


@contextlib.asynccontextmanager
async def locked(directory: Path) -> AsyncIterator[Held]:
    """Holds the lock of `directory`; its file lies beside the directory.

    The kernel lets go of it when the last process that holds it ends, however it ends.
    """
    path = directory.with_name(f".{directory.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            await _flock(descriptor)
            if _is_file(descriptor, path):
                yield Held(path, descriptor)
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
