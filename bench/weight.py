"""What a stack weighs: the memory of all its processes, and the files of its databases."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_BLOCK_BYTES = 512


def memory_bytes(servers: Path) -> dict[str, int]:
    """Returns the memory of the stack's processes, by program, each shared page counted once.

    These are the children of this process, and the servers in `servers`, which are nobody's.
    """
    weights: dict[str, int] = {}
    for process in _processes(servers):
        with suppress(psutil.Error, FileNotFoundError):
            name = _name(process)
            weights[name] = weights.get(name, 0) + int(process.memory_full_info().pss)
    return weights


def _processes(servers: Path) -> Iterator[psutil.Process]:
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid in own or _belongs(process, servers):
                yield process


def _belongs(process: psutil.Process, servers: Path) -> bool:
    """Whether it is a server in `servers`, or what stands beside one."""
    return Path(process.cwd()).is_relative_to(servers) or any(
        argument.startswith(f"{servers}{os.sep}") for argument in process.cmdline()
    )


def _name(process: psutil.Process) -> str:
    """Returns the service's name for one of ours, the program's for any other."""
    command = process.cmdline()
    services = [each for each in command if each.startswith("services.")]
    return services[0].removeprefix("services.") if services else process.name()


def disk_bytes(folder: Path) -> int:
    """Returns what the files below `folder` occupy."""
    return sum(file.lstat().st_blocks * _BLOCK_BYTES for file in (folder, *folder.rglob("*")))
