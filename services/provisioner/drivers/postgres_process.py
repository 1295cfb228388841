"""A Postgres server as a process of its own: started, found again, ended.

A server directory is one Postgres data directory. Whatever changes it holds the lock file beside
it, so that no two processes start, copy or remove one server at a time. Servers run in a session
of their own and outlive whoever started them.
"""

import asyncio
import contextlib
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import psutil

from services.provisioner.drivers.folder_lock import Held, locked
from services.provisioner.drivers.postgres_install import (
    PostgresMissingError,
    ServerUser,
    binaries,
    reachable_home,
    server_user,
)
from services.provisioner.drivers.postgres_template import (
    Blueprint,
    clone,
    ensure_spare,
    ensure_template,
    partial_of,
    spare_of,
)
from services.provisioner.drivers.server_command import ServerError, detach

__all__ = [
    "Blueprint",
    "PortTakenError",
    "PostgresMissingError",
    "RunningServer",
    "ServerError",
    "ServerUser",
    "binaries",
    "clone",
    "destroy",
    "end_remains",
    "ensure_spare",
    "ensure_template",
    "free_port",
    "reachable_home",
    "running",
    "server_user",
    "spare_of",
    "start",
    "stop",
]

HOST = "127.0.0.1"
LOG_NAME = "server.log"
_PID_FILE = "postmaster.pid"
_POLL_SECONDS = 0.005
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_MOST_LOG_BYTES = 1 << 20


class PortTakenError(ServerError):
    """Someone else listens on the port."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server process that is alive."""

    pid: int
    port: int
    # It accepts connections.
    ready: bool


def free_port() -> int:
    """Returns a port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def running(directory: Path) -> RunningServer | None:
    """Returns the server of `directory`, proven to be alive and to be that server.

    A process id alone proves nothing, since the system uses it again: the process must be Postgres
    and work in that very directory.
    """
    try:
        lines = (directory / _PID_FILE).read_text().splitlines()
        pid, port = int(lines[0]), int(lines[3])
    except (OSError, ValueError, IndexError):
        return None
    # Postgres that prepares a directory without serving it writes its id below zero.
    if pid <= 0 or not _is_server(pid, directory.resolve()):
        return None
    ready = len(lines) > 7 and lines[7].strip() == "ready"  # noqa: PLR2004 the line's number
    return RunningServer(pid=pid, port=port, ready=ready)


async def start(
    directory: Path,
    port: int,
    settings: Mapping[str, str],
    *,
    patience: float = _START_SECONDS,
) -> RunningServer:
    """Returns the server of `directory` once it accepts connections, started if it was not running.

    A server that runs already is adopted as it is, whatever its port.

    Args:
        directory: the server's data directory.
        port: where a server that has to be started listens.
        settings: its run-time parameters; they win over its configuration files.
        patience: seconds to wait; recovery after a crash can take long.

    Raises:
        PortTakenError: someone else listens on `port`.
        ServerError: it does not start, or not in time; it may still be recovering.
    """
    async with locked(directory) as lock:
        if running(directory) is not None:
            return await _await_ready(directory, None, patience)
        if (directory / _PID_FILE).exists():
            await end_remains(directory)
        _start_log(directory)
        pid = await asyncio.to_thread(_launch, directory, port, settings, lock)
        return await _await_ready(directory, pid, patience)


async def stop(directory: Path) -> None:
    """Ends the server of `directory`, disconnecting its clients; its files stay.

    Raises:
        ServerError: it would not end.
    """
    async with locked(directory):
        await _end(directory, (signal.SIGINT, signal.SIGQUIT))


async def destroy(directory: Path) -> None:
    """Ends the server of `directory` and removes every file of it; does nothing if it is gone.

    Raises:
        ServerError: it would not end.
    """
    async with locked(directory) as lock:
        await _end(directory, (signal.SIGQUIT,))
        await asyncio.to_thread(_remove, directory)
        lock.file.unlink(missing_ok=True)


async def end_remains(directory: Path) -> None:
    """Ends what has outlived the server of `directory`; call it with the lock held.

    A server that died without cleaning up can leave its children behind for a moment.

    Raises:
        ServerError: something of it would not end.
    """
    await _end(directory, ())
    (directory / _PID_FILE).unlink(missing_ok=True)


def _remove(directory: Path) -> None:
    """Removes `directory` at one stroke by name, then its files."""
    doomed = directory.with_name(f".{directory.name}.doomed")
    # What one that was killed had left would be in the way.
    shutil.rmtree(doomed, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        directory.rename(doomed)
    for path in (doomed, partial_of(directory)):
        shutil.rmtree(path, ignore_errors=True)


async def _await_ready(directory: Path, pid: int | None, patience: float) -> RunningServer:
    until = monotonic() + patience
    while monotonic() < until:
        server = running(directory)
        if server is None and (pid is None or not _alive(pid)):
            raise _failure(directory)
        if server is not None and server.ready and await _accepts(server.port):
            return server
        await asyncio.sleep(_POLL_SECONDS)
    raise ServerError("the server does not accept connections in time")


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return False
    writer.close()
    return True


def _launch(directory: Path, port: int, settings: Mapping[str, str], lock: Held) -> int:
    """Starts the postmaster and returns its process id at once."""
    fixed = {"listen_addresses": HOST, "unix_socket_directories": "", "port": str(port)}
    options = [f"--{name}={value}" for name, value in {**settings, **fixed}.items()]
    postgres = str(binaries() / "postgres")
    command = (postgres, "-D", str(directory), *options)
    return detach(command, lock, folder=directory, output=LOG_NAME)


def _start_log(directory: Path) -> None:
    """Keeps one earlier log: what is in the log tells about this start alone."""
    with contextlib.suppress(FileNotFoundError):
        (directory / LOG_NAME).rename(directory / f"{LOG_NAME}.1")


def _failure(directory: Path) -> ServerError:
    with contextlib.suppress(OSError), (directory / LOG_NAME).open("rb") as log:
        if b"could not create any TCP/IP sockets" in log.read(_MOST_LOG_BYTES):
            return PortTakenError("the port is taken")
    return ServerError("the server does not start")


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _is_server(pid: int, directory: Path) -> bool:
    try:
        process = psutil.Process(pid)
        return (
            process.status() != psutil.STATUS_ZOMBIE
            and Path(process.exe()).name == "postgres"
            and Path(process.cwd()) == directory
        )
    except psutil.Error:
        return False


def _server_processes(directory: Path) -> list[psutil.Process]:
    """The postmaster, its children, and children that outlived one."""
    resolved = directory.resolve()
    return [
        process
        for process in psutil.process_iter()
        # Of all processes of the machine: nothing about one is learned more cheaply.
        if _works_in(process, resolved) and _is_server(process.pid, resolved)
    ]


def _works_in(process: psutil.Process, directory: Path) -> bool:
    try:
        return bool(process.cwd() == str(directory))
    except psutil.Error:
        return False


async def _end(directory: Path, signals: Sequence[signal.Signals]) -> None:
    """Asks the server to end with each of `signals` in turn, then kills what is left of it."""
    for number in signals:
        server = running(directory)
        if server is not None:
            await _signal(_process(server.pid), number)
    remains = _server_processes(directory)
    if not await _signal(remains, signal.SIGKILL):
        raise ServerError("the server does not end")


def _process(pid: int) -> list[psutil.Process]:
    try:
        return [psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return []


async def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> bool:
    """Returns whether all `processes` are gone in time; psutil never signals a recycled id."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    until = monotonic() + _STOP_SECONDS
    while any(_alive(process.pid) for process in processes):
        if monotonic() > until:
            return False
        await asyncio.sleep(_POLL_SECONDS)
    return True
