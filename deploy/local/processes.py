"""One supervised process: started, watched, started again when it dies, ended."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from time import monotonic

import psutil

from deploy.local import lifeline
from deploy.local.files import PRIVATE_FILE
from services.shared.clock import utc_now

_MOST_LOG_BYTES = 8 << 20
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 10.0
# A process that lived this long had started well; its next death is a first one again.
_SETTLED_SECONDS = 10.0
_TAIL_BYTES = 4_000
_TAIL_LINES = 20

Probe = Callable[[], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and how to ask whether it is well."""

    name: str
    command: Sequence[str]
    log: Path
    # Where it serves, for people to read.
    address: str
    probe: Probe
    # Its whole environment.
    environment: Mapping[str, str] = field(default_factory=dict)
    # Seconds it may take to end when it is asked to.
    patience: float = 15.0
    # What it is sent when its supervisor dies, after which nobody would be there to insist.
    orphaned: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Alive:
    """A process that cannot be mistaken for another with the same id."""

    pid: int
    created: float

    def process(self) -> psutil.Process | None:
        """Returns the process; None when it has gone, whoever has its id now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < 1
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


class Supervised:
    """A program that is kept running until it is told to end."""

    def __init__(self, program: Program, changed: Callable[[], None]) -> None:
        self.program = program
        self.alive: Alive | None = None
        self.since: datetime | None = None
        self.exit_code: int | None = None
        self.starts = 0
        # Where in its log the program began to speak.
        self.spoke_from = 0
        self._changed = changed
        self._ending = asyncio.Event()

    @property
    def restarts(self) -> int:
        """Times that it was started again after it had died."""
        return max(0, self.starts - 1)

    async def run(self) -> None:
        """Keeps the program running; returns when it has ended after `end`."""
        rotate(self.program.log)
        self.spoke_from = length(self.program.log)
        deaths = 0
        while not self._ending.is_set():
            started = monotonic()
            await self._run_once()
            deaths = 1 if monotonic() - started > _SETTLED_SECONDS else deaths + 1
            await self._pause(deaths)

    def end(self) -> None:
        """Asks the program to end for good; `run` returns when it has."""
        self._ending.set()

    async def _run_once(self) -> None:
        try:
            process = await self._spawn()
        except OSError as error:
            note(self.program.log, f"{self.program.name} cannot be started: {error.strerror}")
            return
        self.starts += 1
        self.since = utc_now()
        self.alive = identified(process.pid)
        self._changed()
        try:
            await self._until_death_or_end(process)
        finally:
            self.exit_code = await _ended(process, self.program.patience)
            self.alive = None
        if not self._ending.is_set():
            note(self.program.log, f"{self.program.name} ended with {self.exit_code}")
        self._changed()

    async def _until_death_or_end(self, process: asyncio.subprocess.Process) -> None:
        waits = [
            asyncio.create_task(process.wait()),
            asyncio.create_task(self._ending.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _spawn(self) -> asyncio.subprocess.Process:
        descriptor = open_log(self.program.log)
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                *("-I", "-S", lifeline.__file__, str(os.getpid()), str(int(self.program.orphaned))),
                *self.program.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=dict(self.program.environment),
                cwd="/",
                # Ctrl-C at the terminal is for the supervisor, which ends the others in order.
                start_new_session=True,
            )
        finally:
            os.close(descriptor)

    async def _pause(self, deaths: int) -> None:
        """Waits before the next start: not at all after the first death, then ever longer."""
        pause = 0.0 if deaths < 2 else _FIRST_PAUSE_SECONDS * 2.0 ** (deaths - 2)  # noqa: PLR2004 the second death
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(pause, _LONGEST_PAUSE_SECONDS)):
                await self._ending.wait()


async def _ended(process: asyncio.subprocess.Process, patience: float) -> int:
    """Returns the exit code; a process that does not end in time is killed."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(patience):
            return await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        return await process.wait()


def open_log(log: Path) -> int:
    """Returns a descriptor that appends to `log`, which nobody else can read."""
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, PRIVATE_FILE)


def note(log: Path, text: str) -> None:
    """Adds a line of ours to `log`."""
    descriptor = open_log(log)
    with os.fdopen(descriptor, "a") as file:
        file.write(f"{utc_now().isoformat(timespec='milliseconds')} supervisor: {text}\n")


def rotate(log: Path) -> None:
    """Puts a log that has grown large aside; one earlier log is kept."""
    if log.exists() and log.stat().st_size > _MOST_LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def length(log: Path) -> int:
    """Returns how many bytes `log` has."""
    return log.stat().st_size if log.exists() else 0


def tail(log: Path, since: int = 0) -> str:
    """Returns the last whole lines of what `log` has beyond its first `since` bytes."""
    size = length(log)
    start = max(since, size - _TAIL_BYTES)
    if start >= size:
        return ""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    # Begun in the middle of a line, unless it is where somebody began to write.
    whole = lines if start == since else lines[1:]
    return "\n".join(whole[-_TAIL_LINES:])


def identified(pid: int) -> Alive | None:
    """Returns the living process with this id; None when there is none."""
    try:
        return Alive(pid, psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
