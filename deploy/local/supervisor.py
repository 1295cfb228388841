"""Keeps a set of processes running, and tells on disk what runs."""

import asyncio
import contextlib
import fcntl
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import monotonic
from typing import Protocol

import psutil

from deploy.local.files import PRIVATE_FILE
from deploy.local.processes import Alive, Program, tail

_POLL_SECONDS = 0.05
# With this a service says that its settings cannot be used: trying again will not help.
_WRONG_SETTINGS = 2
# A process that died this often while the stack starts will not come up.
_MOST_DEATHS = 3
_END_SECONDS = 15.0
# Processes whose supervisor died were told to end at that moment.
LEFTOVER_SECONDS = 5.0

Progress = Callable[[str], None]


class StartError(Exception):
    """A process of the stack did not become healthy; the message ends with its last words."""


class AlreadyRunningError(Exception):
    """Another supervisor holds this state folder."""


class Kept(Protocol):
    """A process that is kept running."""

    program: Program
    alive: Alive | None
    since: datetime | None
    exit_code: int | None
    starts: int
    # Where in its log it began to speak.
    spoke_from: int

    @property
    def restarts(self) -> int:
        """Times that it was started again after it had died."""
        ...

    async def run(self) -> None:
        """Keeps it running; returns when it has ended after `end`."""
        ...

    def end(self) -> None:
        """Asks it to end for good."""
        ...


class Supervisor:
    """Runs processes until it is told to end them."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._kept: dict[str, tuple[Kept, asyncio.Task[None]]] = {}
        self._changed = changed

    @property
    def kept(self) -> list[Kept]:
        """What is kept running, in the order in which it was started."""
        return [kept for kept, _ in self._kept.values()]

    async def start(self, wanted: Sequence[Kept], until: float, progress: Progress) -> None:
        """Returns once all of `wanted` are healthy; they start side by side.

        Raises:
            StartError: one of them was not at the monotonic time `until`, or will not be.
        """
        for kept in wanted:
            task = asyncio.create_task(kept.run(), name=kept.program.name)
            self._kept[kept.program.name] = (kept, task)
        try:
            async with asyncio.TaskGroup() as group:
                for kept in wanted:
                    group.create_task(self._healthy(kept, until, progress))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None

    async def stop(self, names: Sequence[str]) -> None:
        """Ends these processes side by side; returns when they have ended."""
        ending = [self._kept.pop(name) for name in names if name in self._kept]
        for kept, _ in ending:
            kept.end()
        await asyncio.gather(*(task for _, task in ending), return_exceptions=True)
        self._changed()

    async def _healthy(self, kept: Kept, until: float, progress: Progress) -> None:
        program = kept.program
        try:
            async with asyncio.timeout(until - monotonic()):
                while not await program.probe():
                    self._refuse_hopeless(kept)
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise _failure(kept, "is not healthy in time") from None
        progress(f"{program.name} is healthy at {program.address}")

    def _refuse_hopeless(self, kept: Kept) -> None:
        _, task = self._kept[kept.program.name]
        if task.done() and task.exception():
            raise _failure(kept, str(task.exception()))
        if kept.exit_code == _WRONG_SETTINGS or kept.restarts >= _MOST_DEATHS:
            raise _failure(kept, f"ended with {kept.exit_code}")


def _failure(kept: Kept, what: str) -> StartError:
    """Returns the error that tells what the program said since it was started, and not before."""
    program = kept.program
    return StartError(
        f"{program.name} {what}; it said (in {program.log}):\n{tail(program.log, kept.spoke_from)}"
    )


@contextmanager
def sole_supervisor(lock: Path) -> Iterator[None]:
    """Holds `lock` for the length of the block; it goes with the process, however that ends.

    Raises:
        AlreadyRunningError: another process holds it.
    """
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise AlreadyRunningError from None
    else:
        yield
    finally:
        os.close(descriptor)


async def end_processes(processes: Sequence[Alive], seconds: float = _END_SECONDS) -> None:
    """Ends processes that are not our children: asks first, and kills what stays."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in _living(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while _living(processes):  # noqa: ASYNC110 the system tells nobody but a parent
                    await asyncio.sleep(_POLL_SECONDS)


def _living(processes: Sequence[Alive]) -> list[psutil.Process]:
    return [process for each in processes if (process := each.process()) is not None]
