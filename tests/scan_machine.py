"""What is left on the machine: files, processes, ports; see `scan`."""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import psutil

# Backups, keyrings and settings are smaller, or named after what they hold.
_SMALL_BYTES: Final = 64 * 1024
_LOGS: Final = frozenset({".log", ".wal", ".aof"})
# Write-ahead files of Postgres.
_WRITE_AHEAD: Final = "pg_wal"


def files_left(folders: Sequence[Path], names: Collection[str]) -> list[str]:
    """Returns a sentence for each file or folder that names any of them, or whose content does."""
    return [sentence for folder in folders for sentence in _files_left(folder, names)]


def _files_left(root: Path, names: Collection[str]) -> Iterator[str]:
    sought = [name.encode() for name in names]
    for place, folders, files in os.walk(root):
        for one in (*folders, *files):
            if any(name in one for name in names):
                yield f"disk: {place}/{one} is left"
        if _WRITE_AHEAD in folders:
            folders.remove(_WRITE_AHEAD)
        for file in files:
            content = _content(Path(place, file))
            if any(name in content for name in sought):
                yield f"disk: {place}/{file} holds what was written"


def _content(file: Path) -> bytes:
    """Returns what is in a small file that is no log; it may go meanwhile."""
    with suppress(OSError):
        if file.suffix not in _LOGS and file.is_file() and file.stat().st_size <= _SMALL_BYTES:
            return file.read_bytes()
    return b""


def processes_left(names: Collection[str]) -> list[str]:
    """Returns a sentence for each process that is at work on any of them."""
    return [
        f"process {process.pid}: {text} is at work"
        for process in psutil.process_iter()
        if process.pid != os.getpid()
        for text in _told(process)
        if any(name in text for name in names)
    ]


def _told(process: psutil.Process) -> Iterator[str]:
    """Yields what a process tells of itself, as far as we may know."""
    gone = (psutil.Error, OSError)
    with suppress(*gone):
        yield " ".join(process.cmdline())
    with suppress(*gone):
        yield process.cwd()
    with suppress(*gone):
        yield from _opened(process)


def _opened(process: psutil.Process) -> Iterator[str]:
    """Yields the paths of its open files; of those that were removed, too, where that is told."""
    descriptors = Path(f"/proc/{process.pid}/fd")
    if not descriptors.is_dir():
        yield from (opened.path for opened in process.open_files())
        return
    for descriptor in descriptors.iterdir():
        with suppress(OSError):
            yield str(descriptor.readlink())


def ports_left(ports: Collection[int]) -> list[str]:
    """Returns a sentence for each of the ports on which anybody listens."""
    if not ports:
        return []
    listening = {
        one.laddr.port
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr
    }
    return [f"port {port}: somebody listens" for port in sorted(listening & set(ports))]
