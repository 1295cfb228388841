"""A service as a process of its own, with settings that a test has made."""

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deploy.envoy.settings import Address
from deploy.local.probes import serving
from services.shared.settings import ServiceSettings
from tests.contracts import ROOT

# A loaded machine takes its time to start ten interpreters.
PATIENCE_SECONDS = 180.0


@dataclass
class ServiceProcess:
    """One process of a service, on ports that it keeps when it is started again."""

    service: str
    settings: ServiceSettings
    log: Path
    # The release that it is of.
    tree: Path = ROOT
    process: asyncio.subprocess.Process | None = None

    @property
    def port(self) -> int:
        """Where it serves gRPC."""
        return address(self.settings.listen).port

    @property
    def ports(self) -> list[int]:
        """Where others of the mesh connect to."""
        listens = [self.settings.listen, getattr(self.settings, "http_listen", None)]
        return [address(each).port for each in listens if each]

    @property
    def pid(self) -> int:
        """Of the process; it runs."""
        assert self.process is not None
        return self.process.pid

    @property
    def last_words(self) -> str:
        """The end of its log."""
        return self.log.read_text()[-2_000:]

    async def start(self) -> None:
        """Returns once it says SERVING."""
        await self.begin()
        health = address(self.settings.health_listen)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await serving(health):
                assert self.process is not None
                assert self.process.returncode is None, self.last_words
                await asyncio.sleep(0.1)

    async def begin(self, *arguments: str) -> asyncio.subprocess.Process:
        """Returns the process, just begun."""
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", f"services.{self.service}", *arguments),
                env=self._environment(),
                cwd=self.tree,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self.process

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Returns how it ended; 0 when it was not running."""
        process, self.process = self.process, None
        if process is None:
            return 0
        with suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await process.wait()
        except TimeoutError:
            process.kill()
            raise

    def _environment(self) -> dict[str, str]:
        values = self.settings.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        named = {
            f"BULKHEAD_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
            for name, value in values.items()
        }
        # Before what is installed.
        path = f"{self.tree}{os.pathsep}{self.tree / 'protos/gen'}"
        return dict(os.environ) | {"PYTHONPATH": path} | named


def address(listen: str) -> Address:
    """Returns the address in a setting."""
    host, _, port = listen.rpartition(":")
    return Address(host, int(port))
