"""The tests' Valkey: beside the services' users it has one that may read everything."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import redis.asyncio

from deploy.local.files import ensure_private, new_secret
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.valkey import START_SECONDS, ValkeyServer, configure, password_files, ready
from deploy.local.waiting import until

READER = "reader"


@asynccontextmanager
async def readable_valkey(home: Path) -> AsyncIterator[ValkeyServer]:
    """Runs a server in `home` for the length of the context."""
    port = free_ports(1)[0]
    command = configure(home, port)
    file = home / f"{READER}.password"
    digest = hashlib.sha256(ensure_private(file, new_secret).encode()).hexdigest()
    users = home / "users.acl"
    users.write_text(f"{users.read_text()}user {READER} reset on #{digest} +@all ~*\n")
    server = ValkeyServer(LOOPBACK, port, {**password_files(home), READER: file})
    with (home / "valkey.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        await until(partial(ready, server), START_SECONDS)
        yield server
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def reader(server: ValkeyServer) -> redis.asyncio.Redis:
    """Returns a client that sees every key; the caller closes it."""
    return redis.asyncio.Redis(
        host=server.host,
        port=server.port,
        username=READER,
        password=server.password_files[READER].read_text(),
        decode_responses=False,
    )
