"""Each replica of each service is restarted in turn, under constant load of every kind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from deploy.local.pki import Paths
from deploy.local.valkey import ValkeyServer
from tests.constant_load import Tenant, a_tenant, every_kind_of_traffic
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
        assert traffic.load.failures == []
        # What was answered was done, and done once.
        assert sorted(await traffic.notes.read()) == sorted(traffic.notes.acknowledged)
