"""The files of a server directory that a copy of it is made of, in the order they are taken in."""

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from services.provisioner.drivers.postgres_install import server_user
from services.provisioner.drivers.server_command import ServerError

_CONTROL = PurePosixPath("global/pg_control")
_WAL = PurePosixPath("pg_wal")
# What belongs to one run of one server, or to us.
_LEFT_OUT = frozenset(
    {
        *("postmaster.pid", "postmaster.opts", "server.log", "server.log.1", "current_logfiles"),
        *("backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old"),
        *("backup_manifest", "standby.signal", "recovery.signal", "pg_hba.conf"),
    }
)
_LEFT_OUT_ANYWHERE = ("pgsql_tmp", "pg_internal.init", "bulkhead.", ".bulkhead.")
# Folders that a server empties, or makes up for, when it starts.
_LEFT_EMPTY = frozenset(
    PurePosixPath(name)
    for name in (
        *("pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp"),
        "pg_subtrans",
    )
)
_NOT_IN_THE_KERNEL = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})
_CHUNK_BYTES = 1 << 20
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Sink(Protocol):
    """Where a copy goes. Names are relative to the server directory."""

    def folder(self, name: str) -> None:
        """Makes a folder."""
        ...

    def file(self, name: str, source: IO[bytes], size: int) -> None:
        """Makes a file of the first `size` bytes of `source`, as far as it has them."""
        ...


class FolderSink:
    """A new server directory. Nobody but us can enter it before it is handed over.

    The servers' user owns what is in it: whoever has taken over one of its processes could else put
    a link in our way.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._user = server_user()
        directory.mkdir(mode=0o700)

    def hand_over(self) -> None:
        """Makes the directory the servers' user's own."""
        if self._user is not None:
            os.chown(self._directory, self._user.uid, self._user.gid)

    def folder(self, name: str) -> None:
        """Makes a folder; see `Sink`."""
        folder = self._directory / name
        folder.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(folder, self._user.uid, self._user.gid)

    def file(self, name: str, source: IO[bytes], size: int) -> None:
        """Makes a file, which shares its blocks with `source` where the file system can."""
        descriptor = os.open(f"{self._directory}/{name}", _NEW_FILE, 0o600)
        with io.FileIO(descriptor, "wb") as target:
            if self._user is not None:
                os.fchown(descriptor, self._user.uid, self._user.gid)
            if not (isinstance(source, io.FileIO) and _copied_by_kernel(source, target, size)):
                shutil.copyfileobj(source, target, _CHUNK_BYTES)


def copy_cluster(directory: Path, sink: Sink, *, live: bool) -> None:
    """Copies what a server directory holds into `sink`.

    Args:
        directory: the server's.
        sink: where to.
        live: its server runs: files come and go meanwhile, and its WAL is left to `copy_wal`.

    Raises:
        ServerError: something in it is no plain file and no folder.
        OSError: a file could not be read or written.
    """
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _copy_folder(root, PurePosixPath(), sink, live=live)
        # Last, so that it is not older than what it speaks of.
        with _opened(root, str(_CONTROL)) as control:
            _copy_one(control, _CONTROL, sink, live=live)
    finally:
        os.close(root)


def copy_wal(directory: Path, sink: Sink, names: Iterable[str]) -> None:
    """Copies the segments of WAL of these names.

    Raises:
        OSError: one of them is gone: the server kept it no longer.
    """
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with _opened(root, str(_WAL)) as folder:
            for name in names:
                with _opened(folder, name) as segment:
                    _copy_one(segment, _WAL / name, sink, live=False)
    finally:
        os.close(root)


def copy_text(sink: Sink, name: str, text: str) -> None:
    """Makes a file of `text`."""
    content = text.encode()
    sink.file(name, io.BytesIO(content), len(content))


def _copy_folder(folder: int, name: PurePosixPath, sink: Sink, *, live: bool) -> None:
    for entry in sorted(os.listdir(folder)):
        inner = name / entry
        if _is_left_out(inner, live=live):
            continue
        try:
            with _opened(folder, entry) as descriptor:
                _copy_one(descriptor, inner, sink, live=live)
        except FileNotFoundError:
            # Dropped while we looked: the WAL knows.
            if not live:
                raise


def _copy_one(descriptor: int, name: PurePosixPath, sink: Sink, *, live: bool) -> None:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        sink.folder(str(name))
        _copy_folder(descriptor, name, sink, live=live)
    elif stat.S_ISREG(status.st_mode):
        with io.FileIO(descriptor, closefd=False) as source:
            sink.file(str(name), source, status.st_size)
    else:
        raise ServerError("the server directory holds something strange")


def _is_left_out(name: PurePosixPath, *, live: bool) -> bool:
    if name == _CONTROL or name.name.startswith(_LEFT_OUT_ANYWHERE):
        return True
    if name.parent in _LEFT_EMPTY or (live and name.parent.is_relative_to(_WAL)):
        # A server needs the folders in the one for WAL.
        return name.parent != _WAL or name.name != "archive_status"
    return len(name.parts) == 1 and name.name in _LEFT_OUT


@contextmanager
def _opened(folder: int, name: str) -> Iterator[int]:
    """Yields a descriptor; a symbolic link is refused, and a pipe waits for nobody."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _copied_by_kernel(source: io.FileIO, target: io.FileIO, size: int) -> bool:
    """Copies without moving the bytes through this process; False when that cannot be done."""
    left = size
    try:
        while left > 0:
            done = os.copy_file_range(source.fileno(), target.fileno(), left)
            if done == 0:
                break
            left -= done
    except OSError as error:
        # Nothing was copied then.
        if error.errno not in _NOT_IN_THE_KERNEL or left != size:
            raise
        return False
    return True
