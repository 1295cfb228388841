"""A Valkey of one's own that is killed, stopped, flushed and started again."""

import asyncio
import hashlib
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import redis.asyncio

from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.valkey import ValkeyServer, configure, password_files, ready
from deploy.local.waiting import until
from services.shared.settings import ValkeySettings

START_SECONDS = 30.0
_FLUSHER = "flusher"


class LosableValkey:
    """One server in a folder; the same port and passwords however often it dies."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.port = free_ports(1)[0]
        self.server = ValkeyServer(LOOPBACK, self.port, password_files(home))
        self._flusher = secrets.token_hex(16)
        self._process: asyncio.subprocess.Process | None = None

    def settings(self) -> ValkeySettings:
        """Returns how ratelimit reaches it."""
        return ValkeySettings(
            valkey_host=LOOPBACK,
            valkey_port=self.port,
            valkey_user="ratelimit",
            valkey_password_file=password_files(self.home)["ratelimit"],
        )

    async def start(self) -> None:
        """Starts it, with what it kept."""
        command = configure(self.home, self.port)
        digest = hashlib.sha256(self._flusher.encode()).hexdigest()
        users = self.home / "users.acl"
        users.write_text(
            f"{users.read_text()}user {_FLUSHER} reset on #{digest} -@all +flushall +get ~*\n"
        )
        with (self.home / "valkey.log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        await until(partial(ready, self.server), START_SECONDS)

    async def kill(self, *, forget: bool = False) -> None:
        """Kills it, and removes what it wrote when it is to `forget`."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
            self._process = None
        if forget:
            shutil.rmtree(self.home / "appendonlydir", ignore_errors=True)

    def hang(self) -> None:
        """Stops it in the middle of whatever it does."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    async def flush(self) -> None:
        """Makes it forget everything, at once."""
        async with self._operator() as operator:
            await operator.flushall()

    async def get(self, key: str) -> int | None:
        """Returns the number at a key."""
        async with self._operator() as operator:
            value = await operator.get(key)
        return None if value is None else int(value)

    def _operator(self) -> redis.asyncio.Redis:
        return redis.asyncio.Redis(
            host=LOOPBACK, port=self.port, username=_FLUSHER, password=self._flusher
        )

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)


@asynccontextmanager
async def losable_valkey(home: Path) -> AsyncIterator[LosableValkey]:
    """Runs it for the length of the block."""
    valkey = LosableValkey(home)
    await valkey.start()
    try:
        yield valkey
    finally:
        await valkey.kill()
