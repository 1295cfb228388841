"""The counters on a real Valkey Cluster of three nodes."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis.crc import key_slot

from deploy.local.ports import LOOPBACK
from services.app_proxy.route_cache import ValkeyRouteCache
from services.app_proxy.routes import Remembered, Route, RouteState
from services.ratelimit.domain import Decision, Limits, Take
from services.ratelimit.gcra import Ceiling
from services.ratelimit.leases import LeaseId, Return, Want, new_token
from services.ratelimit.ledger import LocalUse
from services.ratelimit.months import microseconds
from services.ratelimit.replay_store import ReplayStore
from services.ratelimit.store import CounterStore, bucket_key, month_key, shard_of
from services.shared.ids import DeploymentId, TenantId, new_deployment_id
from services.shared.redis import Valkey, is_cluster, open_valkey
from tests.floors import KnownMonths
from tests.valkey_cluster import ADMIN, NODES, SLOTS, ask, cluster_settings, valkey_cluster

NOW_US = microseconds(datetime(2026, 11, 22, 12, tzinfo=UTC))
PATIENCE_SECONDS = 20.0
BURST = 50


@dataclass(frozen=True)
class Cluster:
    home: Path
    ports: list[int]


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    home = tmp_path_factory.mktemp("cluster")
    async with valkey_cluster(home) as ports:
        yield Cluster(home, ports)


@pytest.fixture(scope="module")
async def client(cluster: Cluster) -> AsyncIterator[Valkey]:
    async with open_valkey(cluster_settings(cluster.home, cluster.ports[0], "ratelimit")) as client:
        yield client


@pytest.fixture(scope="module")
def floors() -> KnownMonths:
    return KnownMonths()


@pytest.fixture(scope="module")
def store(client: Valkey, floors: KnownMonths) -> CounterStore:
    return CounterStore(client, floors, PATIENCE_SECONDS)


@pytest.mark.promise("P-05")
async def test_batches_over_all_nodes_admit_exactly_the_burst_of_each_deployment(
    cluster: Cluster, store: CounterStore
) -> None:
    limits = Limits(Ceiling(1, BURST), None)
    deployments = [new_deployment_id() for _ in range(40)]
    takes = [Take(each, limits, 1) for each in deployments] * 6
    batches = await asyncio.gather(*(store.take(takes) for _ in range(20)))
    admitted = dict.fromkeys(deployments, 0)
    for batch in batches:
        for take, reading in zip(takes, batch, strict=True):
            admitted[take.deployment_id] += reading.decision is Decision.ALLOWED
    began = min(reading.at for batch in batches for reading in batch)
    lasted = (max(reading.at for batch in batches for reading in batch) - began).total_seconds()
    assert all(BURST <= each <= BURST + lasted for each in admitted.values())
    keys = [await ask(port, "KEYS", "limit:*") for port in cluster.ports]
    owned = [[key for key in each if key.decode().split(":")[2] in admitted] for each in keys]
    assert all(owned)
    assert sum(map(len, owned)) == 2 * len(deployments)


async def test_calls_that_are_cancelled_in_flight_never_mix_up_the_answers(
    store: CounterStore,
) -> None:
    limits = Limits(Ceiling(1_000_000, 1_000_000), None)
    deployments = {new_deployment_id(): cost for cost in range(1, 41)}
    totals = dict.fromkeys(deployments, 0)
    for turn in range(20):
        flights = {
            one: asyncio.create_task(store.take([Take(one, limits, cost)] * 3))
            for one, cost in deployments.items()
        }
        for _ in range(turn):
            await asyncio.sleep(0)
        for flight in list(flights.values())[::2]:
            flight.cancel()
        await asyncio.gather(*flights.values(), return_exceptions=True)
        for one, flight in flights.items():
            if flight.cancelled():
                continue
            used, cost = [reading.used for reading in flight.result()], deployments[one]
            assert used == list(range(used[0], used[0] + 3 * cost, cost))
            assert used[0] % cost == 0
            assert used[0] > totals[one]
            totals[one] = used[-1]


async def test_the_keys_of_a_deployment_share_a_slot_and_shards_lie_at_every_node() -> None:
    slots = set()
    for _ in range(2_000):
        deployment = new_deployment_id()
        slot = key_slot(bucket_key(deployment).encode())
        assert slot == key_slot(month_key(deployment, "2026-11").encode())
        slots.add(slot)
    assert len(slots) == 64
    assert {NODES * slot // SLOTS for slot in slots} == set(range(NODES))


async def test_a_batch_is_one_script_call_per_shard_however_many_its_items(
    cluster: Cluster, store: CounterStore
) -> None:
    deployments = [new_deployment_id() for _ in range(200)]
    shards = {shard_of(each) for each in deployments}
    takes = [Take(each, Limits(Ceiling(10, BURST), None), 1) for each in deployments]
    # Both months and scripts are known from the second time on.
    await store.take(takes)
    before = await _script_calls(cluster)
    await store.take(takes)
    assert await _script_calls(cluster) - before == len(shards) <= 64


async def test_the_durable_counts_are_asked_for_once_for_all_shards(
    store: CounterStore, floors: KnownMonths
) -> None:
    deployments = [new_deployment_id() for _ in range(50)]
    month = (await store.take([Take(deployments[0], Limits(Ceiling(10, 20), None), 0)]))[0].month
    floors.counts |= {(each, month.name): 7 for each in deployments}
    floors.asked.clear()
    readings = await store.take(
        [Take(each, Limits(Ceiling(10, 20), None), 1) for each in deployments[1:]]
    )
    assert [reading.used for reading in readings] == [8] * 49
    assert floors.asked == [(tuple(sorted(deployments[1:])), month.name)]


async def test_leases_are_taken_and_given_back_at_every_node(store: CounterStore) -> None:
    limits = Limits(Ceiling(1, BURST), 1_000)
    deployments = [new_deployment_id() for _ in range(30)]
    wants = [Want(each, limits, 20, new_token()) for each in deployments]
    grants = await store.lease(wants, NOW_US)
    assert [grant.calls for grant in grants] == [20] * 30
    returns = [Return(grant.lease_id, 15) for grant in grants]
    returned = await store.give_back([*returns, Return(LeaseId("no lease"), 15)], NOW_US)
    assert [each and each.calls for each in returned] == [15] * 30 + [None]
    readings = await store.take([Take(each, limits, 0) for each in deployments], NOW_US)
    assert {reading.used for reading in readings} == {5}


async def test_a_server_that_forgot_the_scripts_is_taught_them_again(
    cluster: Cluster, store: CounterStore
) -> None:
    takes = [Take(new_deployment_id(), Limits(Ceiling(10, 20), None), 1) for _ in range(30)]
    for port in cluster.ports:
        await ask(port, "SCRIPT", "FLUSH")
    assert {reading.used for reading in await store.take(takes)} == {1}


async def test_a_slot_that_moved_is_found_again_by_many_at_once(
    cluster: Cluster, client: Valkey
) -> None:
    store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
    take = Take(new_deployment_id(), Limits(Ceiling(1, BURST), None), 1)
    others = [Take(new_deployment_id(), Limits(Ceiling(1, BURST), None), 1) for _ in range(40)]
    assert (await store.take([take, *others]))[0].used == 1
    slot = key_slot(bucket_key(take.deployment_id).encode())
    await _move(cluster, slot)
    batches = await asyncio.gather(*(store.take([take, *others]) for _ in range(29)))
    assert sorted(batch[0].used for batch in batches) == list(range(2, 31))
    (look,) = await store.take([Take(take.deployment_id, take.limits, 0)])
    assert look.used == 30


async def test_routes_are_remembered_on_a_cluster(cluster: Cluster) -> None:
    assert cluster.ports
    settings = cluster_settings(cluster.home, cluster.ports[1], "app_proxy")
    async with open_valkey(settings) as client:
        assert is_cluster(client)
        cache = ValkeyRouteCache(client, seconds=60, unknown_seconds=3, tombstone_seconds=60)
        await cache.check()
        routes = [_route(f"host-{number}.localhost") for number in range(40)]
        for route in routes:
            await cache.write(route.host, route)
        found = await asyncio.gather(*(cache.look_up(route.host) for route in routes))
        assert found == [Remembered(route) for route in routes]
        assert await cache.look_up("unknown.localhost") is None


def _route(host: str) -> Route:
    return Route(
        host=host,
        deployment_id=DeploymentId("dep_1"),
        tenant_id=TenantId("ten_1"),
        state=RouteState.RUNNING,
        name="notes",
        mcp=True,
    )


async def _script_calls(cluster: Cluster) -> int:
    """Returns how many script calls all nodes have served."""
    total = 0
    for port in cluster.ports:
        stats = await ask(port, "INFO", "commandstats")
        total += sum(
            int(stats[name]["calls"])
            for name in ("cmdstat_evalsha", "cmdstat_eval")
            if name in stats
        )
    return total


async def _move(cluster: Cluster, slot: int) -> None:
    """Moves the keys of a slot, and then the slot, to another node."""
    ids = {port: (await ask(port, "CLUSTER", "MYID")).decode() for port in cluster.ports}
    source = cluster.ports[min(slot * NODES // SLOTS, NODES - 1)]
    target = next(port for port in cluster.ports if port != source)
    await ask(target, "CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[source])
    await ask(source, "CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[target])
    keys = await ask(source, "CLUSTER", "GETKEYSINSLOT", str(slot), "1000")
    target_as_admin = (LOOPBACK, str(target), "", "0", "5000", "AUTH2", *ADMIN)
    await ask(source, "MIGRATE", *target_as_admin, "KEYS", *(key.decode() for key in keys))
    for port in (target, source):
        await ask(port, "CLUSTER", "SETSLOT", str(slot), "NODE", ids[target])


@pytest.mark.promise("P-05")
async def test_what_was_admitted_without_the_cluster_is_counted_once_at_every_node(
    client: Valkey, store: CounterStore
) -> None:
    limits = Limits(Ceiling(1, BURST), None)
    deployments = [new_deployment_id() for _ in range(60)]
    before = await store.take([Take(each, limits, 1) for each in deployments])
    uses = [
        LocalUse("r1", each, reading.month.name, TenantId("ten_a"), 7, 0, 0, limits)
        for each, reading in zip(deployments, before, strict=True)
    ]
    replays = ReplayStore(client, PATIENCE_SECONDS)
    for _ in range(2):
        assert {done.counted for done in await replays.replay(uses)} == {8}
    after = await store.take([Take(each, limits, 0) for each in deployments])
    assert {reading.used for reading in after} == {8}
    await replays.check()
