"""What `bulkhead up --detach`, `down` and `status` do with a stack that another process runs."""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic

from deploy.local import postgres, s3
from deploy.local.layout import Layout
from deploy.local.probes import POSTGRES, probes
from deploy.local.processes import Alive, length, open_log, rotate, tail
from deploy.local.record import Record, RecordedProcess, leftovers, read_record
from deploy.local.servers import DeploymentServer, deployment_servers, stop_deployment_servers
from deploy.local.stack import START_SECONDS, Addresses, addresses_of
from deploy.local.supervisor import (
    LEFTOVER_SECONDS,
    AlreadyRunningError,
    Progress,
    StartError,
    end_processes,
    sole_supervisor,
)
from services.provisioner.drivers import postgres_process

SUPERVISOR = "supervisor"
# Exit code of a supervisor that found another one at work.
ALREADY_RUNNING = 3
# Longer than all that the supervisor itself waits for when it ends its processes one after another.
_STOP_SECONDS = 60.0
_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """One process of the stack as it is now."""

    name: str
    pid: int | None
    since: str | None
    restarts: int
    healthy: bool
    address: str


@dataclass(frozen=True, slots=True)
class StackStatus:
    """The whole stack as it is now."""

    state: str
    running: bool
    processes: tuple[ProcessStatus, ...]
    servers: tuple[DeploymentServer, ...]

    @property
    def healthy(self) -> bool:
        """Whether it runs and every process is well."""
        return self.running and all(process.healthy for process in self.processes)


def addresses(layout: Layout) -> Addresses:
    """Returns where the stack in this state folder is reached."""
    return addresses_of(layout, layout.kept_ports())


async def status(layout: Layout) -> StackStatus:
    """Returns what runs, each process asked at this moment."""
    record = read_record(layout) if layout.exists() else None
    processes = record.processes if record else ()
    ask = probes(layout, layout.kept_ports()) if record else {}
    healthy = await asyncio.gather(*(ask[process.name]() for process in processes))
    return StackStatus(
        state=str(layout.state),
        running=record is not None and record.supervised,
        processes=tuple(map(_status, processes, healthy)),
        servers=tuple(deployment_servers(layout)) if layout.exists() else (),
    )


async def start_detached(layout: Layout, arguments: Sequence[str], progress: Progress) -> bool:
    """Returns once the stack is healthy: whether it was started now, or ran already.

    Args:
        layout: the state folder.
        arguments: the command line of `python -m deploy.local`.
        progress: told of each process that becomes healthy.

    Raises:
        StartError: it is not healthy within 60 s; nothing of it is left then.
    """
    record = read_record(layout) if layout.exists() else None
    if record and record.supervised:
        await until_ready(layout, progress)
        return False
    layout.make()
    rotate(layout.log(SUPERVISOR))
    since = length(layout.log(SUPERVISOR))
    supervisor = _spawn(layout, arguments)
    try:
        await until_ready(layout, progress, supervisor, since)
    except StartError:
        supervisor.terminate()
        await asyncio.to_thread(supervisor.wait)
        raise
    return True


async def until_ready(
    layout: Layout,
    progress: Progress,
    supervisor: "subprocess.Popen[bytes] | None" = None,
    since: int = 0,
) -> None:
    """Returns once the stack that another process starts is healthy.

    `since` is where in its log the supervisor began.

    Raises:
        StartError: it is not within 60 s, or its supervisor has ended.
    """
    # The supervisor knows better than we do what is wrong: it is given the time to say so.
    until = monotonic() + START_SECONDS + _STOP_SECONDS
    told: set[str] = set()
    while monotonic() < until:
        record = read_record(layout)
        _tell(record, told, progress)
        if record and record.ready and record.supervised:
            return
        if supervisor is not None and supervisor.poll() not in (None, ALREADY_RUNNING):
            raise StartError(tail(layout.log(SUPERVISOR), since))
        await asyncio.sleep(_POLL_SECONDS)
    raise StartError(f"the stack is not healthy:\n{tail(layout.log(SUPERVISOR), since)}")


async def stop(layout: Layout, *, purge: bool) -> bool:
    """Returns whether anything ran; every process of the stack has ended when it returns.

    Args:
        layout: the state folder.
        purge: also remove the state folder and all data.

    Raises:
        StartError: another command is just starting the stack.
    """
    if not layout.exists():
        return False
    record = read_record(layout)
    if record and record.supervisor:
        await end_processes([record.supervisor], _STOP_SECONDS)
    try:
        with sole_supervisor(layout.lock):
            ran = await _end_remains(layout)
            if purge:
                await asyncio.to_thread(layout.remove)
    except AlreadyRunningError:
        raise StartError("the stack is just being started; try again") from None
    return ran or record is not None


async def _end_remains(layout: Layout) -> bool:
    """Ends what a supervisor that was killed left behind; returns whether there was anything."""
    remains: list[Alive] = leftovers(layout)
    await end_processes(remains, LEFTOVER_SECONDS)
    s3.remove_sockets(layout.kept_ports())
    servers = deployment_servers(layout)
    await stop_deployment_servers(layout)
    mesh = layout.servers / postgres.DIRECTORY_NAME
    ran = bool(remains or servers or postgres_process.running(mesh))
    if mesh.exists():
        await postgres_process.stop(mesh)
    layout.running.unlink(missing_ok=True)
    return ran


def _spawn(layout: Layout, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    log = layout.log(SUPERVISOR)
    descriptor = open_log(log)
    with contextlib.closing(os.fdopen(descriptor, "ab")) as output:
        return subprocess.Popen(
            (sys.executable, "-P", "-m", "deploy.local", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
        )


def _tell(record: Record | None, told: set[str], progress: Progress) -> None:
    for process in record.processes if record else ():
        if process.alive and process.name not in told:
            told.add(process.name)
            progress(f"started {process.name} at {process.address}")


def _status(process: RecordedProcess, healthy: bool) -> ProcessStatus:
    alive = process.alive is not None and (
        process.name == POSTGRES or process.alive.process() is not None
    )
    return ProcessStatus(
        name=process.name,
        pid=process.alive.pid if process.alive and alive else None,
        since=process.since,
        restarts=process.restarts,
        healthy=healthy and alive,
        address=process.address,
    )
