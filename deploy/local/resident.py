"""The mesh's Postgres server as a process that is kept running, though it is nobody's child."""

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from deploy.local import postgres
from deploy.local.processes import Alive, Program, identified, note
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.postgres_process import ServerError

_WATCH_SECONDS = 0.25
_PAUSE_SECONDS = 1.0


class ResidentPostgres:
    """Kept running until it is told to end; outlives a supervisor that is killed."""

    def __init__(self, program: Program, home: Path, changed: Callable[[], None]) -> None:
        self.program = program
        self.alive: Alive | None = None
        self.since: datetime | None = None
        self.exit_code: int | None = None
        self.starts = 0
        # A server that outlives supervisors has spoken before this one.
        self.spoke_from = 0
        self._home = home
        self._directory = postgres.server_directory(home)
        self._changed = changed
        self._ending = asyncio.Event()

    @property
    def restarts(self) -> int:
        """Times that it was started again after it had died."""
        return max(0, self.starts - 1)

    async def run(self) -> None:
        """Keeps the server running; returns when it has ended after `end`.

        Raises:
            ServerError: it could not be started a first time.
        """
        while not self._ending.is_set():
            pause = _WATCH_SECONDS
            if self._lost():
                pause = await self._start()
            await self._pause(pause)
        await postgres_process.stop(self._directory)
        self.alive = None

    def end(self) -> None:
        """Asks the server to end for good; `run` returns when it has."""
        self._ending.set()

    def _lost(self) -> bool:
        server = postgres_process.running(self._directory)
        return server is None or self.alive is None or server.pid != self.alive.pid

    async def _start(self) -> float:
        """Starts or adopts the server; returns how long to wait before looking again."""
        port = int(self.program.address.rpartition(":")[2])
        try:
            await postgres.start(self._home, port)
        except ServerError as error:
            note(self.program.log, f"{self.program.name} cannot be started: {error}")
            if self.starts == 0:
                raise
            return _PAUSE_SECONDS
        server = postgres_process.running(self._directory)
        self.alive = identified(server.pid) if server else None
        # One that was adopted is older than we are.
        self.since = datetime.fromtimestamp(self.alive.created, UTC) if self.alive else None
        self.starts += 1
        self._changed()
        return _WATCH_SECONDS

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ending.wait()
