"""Replicas of services as processes that can be paused and killed, and wires that can be cut."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from deploy.local.pki import Paths
from services.shared.settings import ServiceSettings
from services.shared.tls import Identity, channel_credentials
from tests.contracts import ROOT

PATIENCE_SECONDS = 60.0
_CHUNK_BYTES = 64 * 1024


@dataclass
class Replica:
    """One process of a service, on a port that it keeps when it is started again."""

    service: str
    number: int
    settings: ServiceSettings
    log: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.settings.listen.rpartition(":")[2])

    async def start(self) -> None:
        """Returns once it accepts connections."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", f"services.{self.service}"),
                env=dict(os.environ) | _environment(self.settings),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await _accepts(self.port):
                assert self.process.returncode is None, self.log.read_text()[-2_000:]
                await asyncio.sleep(0.05)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Ends it; it may be paused."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            self.process.send_signal(number)
        await self.process.wait()
        self.process = None

    def pause(self) -> None:
        """Stops the process in the middle of whatever it does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets the process go on as if nothing had been."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


@dataclass
class Relay:
    """Passes bytes on between a caller and a server, unless it is cut; then they are kept back."""

    port: int
    target: int
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _pumps: set[asyncio.Task[None]] = field(default_factory=set)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Relay"]:
        """Yields the relay while it listens."""
        self.mend()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        try:
            yield self
        finally:
            server.close()
            for pump in self._pumps:
                pump.cancel()
            await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Passes nothing on from now on; both ends believe that they are connected."""
        self._open.clear()

    def mend(self) -> None:
        """Passes on what was kept back, and all that comes."""
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, back), (there, writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await source.read(_CHUNK_BYTES):
                await self._open.wait()
                sink.write(chunk)
                await sink.drain()
        sink.close()


def channel(port: int, service: str, paths: Paths) -> grpc.aio.Channel:
    """Returns a channel to one replica with the certificate in `paths`; it retries nothing."""
    identity = Identity.read(paths.certificate, paths.key, paths.authority)
    return grpc.aio.secure_channel(
        f"127.0.0.1:{port}",
        channel_credentials(identity),
        options=[
            ("grpc.ssl_target_name_override", service),
            ("grpc.enable_retries", 0),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.max_reconnect_backoff_ms", 200),
        ],
    )


@asynccontextmanager
async def background(*loops: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Runs the loops beside the block; one that fails fails the block at its end."""
    tasks = [asyncio.create_task(loop()) for loop in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def _environment(settings: ServiceSettings) -> dict[str, str]:
    values = settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return {
        f"BULKHEAD_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


async def _accepts(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True
