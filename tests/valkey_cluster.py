"""A real Valkey Cluster of three nodes on loopback, for the length of a block."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import redis.asyncio

from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.valkey import configure, password_files
from services.shared.settings import ValkeySettings

NODES = 3
SLOTS = 16_384
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.05
# Guards servers that live for seconds.
ADMIN = ("admin", "of-this-test-alone")


@asynccontextmanager
async def valkey_cluster(home: Path) -> AsyncIterator[list[int]]:
    """Yields the ports of the nodes, once each knows that every slot is served.

    The services' users and passwords are those of the first node, on all of them.
    """
    ports = free_ports(2 * NODES)
    nodes = list(zip(ports[:NODES], ports[NODES:], strict=True))
    async with AsyncExitStack() as stack:
        for port, bus in nodes:
            await stack.enter_async_context(_node(home / str(port), port, bus, home))
        await _join(nodes)
        yield ports[:NODES]


def cluster_settings(home: Path, port: int, user: str) -> ValkeySettings:
    """Returns how a service reaches the cluster by one of its nodes."""
    return ValkeySettings(
        valkey_host=LOOPBACK,
        valkey_port=port,
        valkey_cluster=True,
        valkey_user=user,
        valkey_password_file=password_files(home)[user],
        valkey_timeout_seconds=30,
    )


async def ask(port: int, *command: str) -> Any:
    """Returns one node's answer to its administrator."""
    async with redis.asyncio.Redis(
        host=LOOPBACK, port=port, username=ADMIN[0], password=ADMIN[1]
    ) as admin:
        return await admin.execute_command(*command)  # type: ignore[no-untyped-call]


@asynccontextmanager
async def _node(folder: Path, port: int, bus: int, home: Path) -> AsyncIterator[None]:
    program = _configure(folder, port, bus, home)
    with (folder / "valkey.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            program, str(folder / "valkey.conf"), stdout=log, stderr=log
        )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def _configure(folder: Path, port: int, bus: int, home: Path) -> str:
    """Returns the program; the passwords lie in `home`, the rest in the node's own folder."""
    program, *_ = configure(home, port)
    folder.mkdir()
    admin = f"user {ADMIN[0]} on >{ADMIN[1]} ~* &* +@all\n"
    (folder / "users.acl").write_text((home / "users.acl").read_text() + admin)
    settings = (home / "valkey.conf").read_text()
    own = settings.replace(str(home.resolve()), str(folder.resolve()))
    clustered = f"cluster-enabled yes\ncluster-port {bus}\ncluster-node-timeout 5000\n"
    (folder / "valkey.conf").write_text(own + clustered)
    return program


async def _join(nodes: Sequence[tuple[int, int]]) -> None:
    share = SLOTS // len(nodes)
    async with asyncio.timeout(PATIENCE_SECONDS):
        for number, (port, _) in enumerate(nodes):
            await _until_it_answers(port)
            last = SLOTS - 1 if number == len(nodes) - 1 else (number + 1) * share - 1
            await ask(port, "CLUSTER", "ADDSLOTSRANGE", str(number * share), str(last))
        for port, bus in nodes[1:]:
            await ask(nodes[0][0], "CLUSTER", "MEET", LOOPBACK, str(port), str(bus))
        for port, _ in nodes:
            while not await _whole(port, len(nodes)):
                await asyncio.sleep(POLL_SECONDS)


async def _until_it_answers(port: int) -> None:
    while True:
        with suppress(redis.exceptions.ConnectionError):
            await ask(port, "PING")
            return
        await asyncio.sleep(POLL_SECONDS)


async def _whole(port: int, nodes: int) -> bool:
    told = (await ask(port, "CLUSTER", "INFO")).split()
    return b"cluster_state:ok" in told and f"cluster_known_nodes:{nodes}".encode() in told
