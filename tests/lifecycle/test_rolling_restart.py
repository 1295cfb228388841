"""Each replica of each service is restarted in turn, under constant load of every kind."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx2
import mcp
import pytest

from deploy.local.pki import Paths
from deploy.local.valkey import ValkeyServer
from services.shared.errors import UnavailableError
from tests.constant_load import RefusedError, Tenant, a_tenant, every_kind_of_traffic
from tests.databases import Databases
from tests.fleet import Fleet, running_fleet


@pytest.fixture(scope="module")
async def fleet(
    home: Path, databases: Databases, valkey: ValkeyServer, pki: dict[str, Paths]
) -> AsyncIterator[Fleet]:
    async with running_fleet(home, databases, valkey, pki) as running:
        yield running


@pytest.fixture(scope="module")
async def tenant(fleet: Fleet) -> AsyncIterator[Tenant]:
    async with a_tenant(fleet) as made:
        yield made


async def test_no_request_fails_while_every_replica_is_restarted_in_turn(
    fleet: Fleet, tenant: Tenant
) -> None:
    async with every_kind_of_traffic(tenant) as traffic:
        async with traffic.load.on():
            await traffic.load.each_called()
            for replica in fleet.every:
                await fleet.restart(replica)
                await traffic.load.each_called()
        assert [*map(str, traffic.load.failures)] == []
        # What was answered was done, and done once.
        assert sorted(await traffic.notes.read()) == sorted(traffic.notes.acknowledged)


async def test_nobody_is_let_in_by_mistake_while_replicas_are_killed(
    fleet: Fleet, tenant: Tenant
) -> None:
    killed = [replicas[0] for replicas in fleet.replicas.values()]
    async with every_kind_of_traffic(tenant) as traffic:
        # What it waits for is cut off; see `test_kills.py`.
        traffic.load.leave_out("api operations")
        async with traffic.load.on():
            await traffic.load.each_called()
            await asyncio.gather(*(replica.end(signal.SIGKILL) for replica in killed))
            await traffic.load.each_called()
            await asyncio.gather(*(replica.start() for replica in killed))
            await traffic.load.each_called()
        for failure in traffic.load.failures:
            assert says_that_something_is_away(failure.error), str(failure)
        words = await traffic.notes.read()
        assert set(words) >= set(traffic.notes.acknowledged)
        assert len(words) == len(set(words))


def says_that_something_is_away(error: Exception) -> bool:
    """Whether it is an honest answer of who cannot tell now."""
    match error:
        case RefusedError():
            return error.status == 503 and error.retry_after >= 1
        case grpc.aio.AioRpcError():
            return error.code() is grpc.StatusCode.UNAVAILABLE
        case _:
            # An MCP client's call has no outcome then.
            return isinstance(error, UnavailableError | mcp.MCPError | httpx2.HTTPError)
