"""Who is connected to a port of this machine, as the kernel tells it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

# The process, or that it is none of those asked about.
Who = int | Literal["another"]

_ESTABLISHED = "01"
_LOCAL, _REMOTE, _STATE, _INODE = 1, 2, 3, 9


def callers_of(port: int, processes: Iterable[int]) -> set[Who]:
    """Returns who has a connection to the port: of `processes` each by its id, else `another`."""
    owners = {inode: process for process in processes for inode in _sockets(process)}
    return {owners.get(inode, "another") for inode in _connected(port)}


def _connected(port: int) -> Iterator[str]:
    """Yields the sockets of those who connected; addresses stand there as hex."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        remote = int(fields[_REMOTE].rpartition(":")[2], 16)
        if remote == port and fields[_STATE] == _ESTABLISHED:
            yield fields[_INODE]


def _sockets(process: int) -> Iterator[str]:
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        try:
            name = str(descriptor.readlink())
        except FileNotFoundError:
            # Closed since it was listed.
            continue
        if name.startswith("socket:["):
            yield name.removeprefix("socket:[").removesuffix("]")
