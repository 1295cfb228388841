"""A server directory in one file: a tar archive, compressed, then sealed."""

import contextlib
import gzip
import io
import os
import secrets
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, cast

from services.provisioner.drivers.cluster_files import Sink
from services.provisioner.drivers.sealed_stream import (
    KeyOf,
    SealedReader,
    SealedWriter,
    UnsealError,
)

_LEVEL = 1
_BUFFER_BYTES = 1 << 18


class ArchiveDamagedError(Exception):
    """The archive is not what was written."""


class ArchiveSink:
    """An archive that is being written beside `file`, and becomes it when it is kept."""

    def __init__(self, file: Path, key_of: KeyOf) -> None:
        self._file = file
        self._key_of = key_of
        self._half = file.with_name(f".{file.name}.{secrets.token_hex(8)}.partial")
        self._target = _created(self._half)
        self._sealed = SealedWriter(self._target, key_of)
        self._packed = gzip.GzipFile("", "wb", _LEVEL, cast("IO[bytes]", self._sealed), mtime=0)
        self._tar = tarfile.open(  # noqa: SIM115 closed when it is kept
            fileobj=self._packed, mode="w"
        )
        self._entries = 0

    def folder(self, name: str) -> None:
        """Adds a folder; see `cluster_files.Sink`."""
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o700
        self._tar.addfile(entry)
        self._entries += 1

    def file(self, name: str, source: IO[bytes], size: int) -> None:
        """Adds a file; see `cluster_files.Sink`."""
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o600
        self._tar.addfile(entry, cast("IO[bytes]", _Padded(source)))
        self._entries += 1

    def keep(self) -> int:
        """Makes the file what was written, 0600, on the disk and read again; returns its bytes.

        Raises:
            ArchiveDamagedError: what was written could not be read again.
        """
        self._tar.close()
        self._packed.close()
        self._sealed.finish()
        self._target.flush()
        os.fsync(self._target.fileno())
        size = self._target.tell()
        if unpack(self._half, self._key_of, _Nowhere()) != self._entries:
            raise ArchiveDamagedError("the backup does not hold what was written")
        self._half.rename(self._file)
        return size

    def discard(self) -> None:
        """Leaves nothing that was not kept."""
        # What it still has to write may fail, and matters no more.
        with contextlib.suppress(OSError, ValueError):
            self._packed.close()
        with contextlib.suppress(OSError):
            self._target.close()
        self._half.unlink(missing_ok=True)


class _Padded:
    """A file that may have become shorter than it was: Postgres then wants zeros there."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source

    def read(self, length: int) -> bytes:
        return self._source.read(length).ljust(length, b"\0")


class _Nowhere:
    """Is told of what an archive holds, and keeps nothing."""

    def folder(self, name: str) -> None:
        """Does nothing."""

    def file(self, name: str, source: IO[bytes], size: int) -> None:
        """Does nothing."""


def unpack(file: Path, key_of: KeyOf, sink: Sink) -> int:
    """Copies what the archive holds into `sink`; returns how many files and folders that were.

    Raises:
        ArchiveDamagedError: it is not what was written; what came before that is in `sink`.
        OSError: it could not be read, or `sink` not be written.
    """
    try:
        with file.open("rb") as source:
            plain = io.BufferedReader(SealedReader(source, key_of), _BUFFER_BYTES)
            with (
                gzip.GzipFile(fileobj=plain) as packed,
                tarfile.open(fileobj=packed, mode="r|", bufsize=_BUFFER_BYTES) as tar,
            ):
                entries = sum(_unpack_one(tar, entry, sink) for entry in tar)
                # To its end, which is proven as well.
                while packed.read(_BUFFER_BYTES):
                    pass
                return entries
    except (UnsealError, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise ArchiveDamagedError("the backup is damaged") from error


def _unpack_one(tar: tarfile.TarFile, entry: tarfile.TarInfo, sink: Sink) -> int:
    name = PurePosixPath(entry.name)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise ArchiveDamagedError("the backup holds a name outside of it")
    if entry.isdir():
        sink.folder(str(name))
        return 1
    content = tar.extractfile(entry) if entry.isreg() else None
    if content is None:
        raise ArchiveDamagedError("the backup holds something strange")
    sink.file(str(name), content, entry.size)
    return 1


def _created(file: Path) -> BinaryIO:
    return os.fdopen(
        os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
    )
