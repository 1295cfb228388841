"""The durable month in Postgres and its way back into Valkey: nothing is lost, nothing twice."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local.valkey import ValkeyServer
from services.ratelimit.checkpoints import Checkpoints
from services.ratelimit.domain import Counters, Decision, Limits, Take, decide
from services.ratelimit.gcra import MICROSECONDS, Ceiling
from services.ratelimit.ledger import (
    Counted,
    Ledger,
    LocalUse,
    MonthUnknownError,
    OwnUse,
    Replayed,
)
from services.ratelimit.months import month_named
from services.ratelimit.replay_store import ReplayStore
from services.ratelimit.store import CounterStore, bucket_key, month_key
from services.ratelimit.usage_store import UsageStore
from services.shared.ids import DeploymentId, TenantId, new_deployment_id
from services.shared.postgres import Database, open_database
from services.shared.redis import open_valkey
from services.shared.settings import ValkeySettings
from tests.databases import SERVICES, Databases

MONTH = "2026-11"
TENANT = TenantId("ten_a")
LIMITS = Limits(Ceiling(1_000_000, 1_000_000), 100)
PATIENCE_SECONDS = 5.0


@pytest.fixture(scope="module")
async def database(databases: Databases) -> AsyncIterator[Database]:
    own = await databases.fresh("ratelimit")
    async with open_database(own, "ratelimit", SERVICES / "ratelimit" / "migrations") as opened:
        yield opened


@pytest.fixture(scope="module")
def usage(database: Database) -> UsageStore:
    return UsageStore(database)


@pytest.fixture(scope="module")
async def client(valkey: ValkeyServer) -> AsyncIterator[redis.asyncio.Redis]:
    own = ValkeySettings(
        valkey_host=valkey.host,
        valkey_port=valkey.port,
        valkey_user="ratelimit",
        valkey_password_file=valkey.password_files["ratelimit"],
    )
    async with open_valkey(own) as opened:
        assert isinstance(opened, redis.asyncio.Redis)
        yield opened


@pytest.fixture
def replays(client: redis.asyncio.Redis) -> ReplayStore:
    return ReplayStore(client, PATIENCE_SECONDS)


def counted(deployment: DeploymentId, used: int, month: str = MONTH) -> Counted:
    return Counted(deployment, month, TENANT, used)


def use(
    deployment: DeploymentId, used: int, replayed: int = 0, replica: str = "r1", floor: int = 0
) -> LocalUse:
    return LocalUse(replica, deployment, MONTH, TENANT, used, replayed, floor, LIMITS)


async def known(usage: UsageStore, *deployments: DeploymentId) -> list[tuple[int, int]]:
    return [(each.counted, each.to_replay) for each in await usage.known(deployments, MONTH)]


async def forget(client: redis.asyncio.Redis, *deployments: DeploymentId) -> None:
    """Loses all that Valkey knows of these."""
    for each in deployments:
        month = month_key(each, MONTH)
        await client.delete(bucket_key(each), month, f"{month}:replayed")


@pytest.mark.promise("P-05")
async def test_a_saved_month_never_becomes_lower(usage: UsageStore) -> None:
    mine, other = new_deployment_id(), new_deployment_id()
    await usage.save([counted(mine, 7), counted(other, 1), counted(mine, 9, "2026-10")], [])
    await usage.save([counted(mine, 5), counted(mine, 6)], [])
    assert await known(usage, mine, new_deployment_id(), other) == [(7, 0), (0, 0), (1, 0)]


async def test_replicas_that_save_the_same_months_at_once_do_not_block_each_other(
    usage: UsageStore,
) -> None:
    deployments = [new_deployment_id() for _ in range(200)]
    orders = [deployments[start:] + deployments[:start] for start in range(0, 200, 25)]
    await asyncio.gather(
        *(
            usage.save([counted(each, number) for each in order], [use(each, 1) for each in order])
            for number, order in enumerate(orders)
        )
    )
    assert await known(usage, *deployments) == [(7, 1)] * 200


async def test_local_use_is_known_until_it_is_settled(usage: UsageStore) -> None:
    mine = new_deployment_id()
    await usage.save([counted(mine, 10)], [use(mine, 3), use(mine, 4, replica="r2")])
    assert await known(usage, mine) == [(10, 7)]
    await usage.save([], [], [Replayed(use(mine, 3), 13)])
    assert await known(usage, mine) == [(13, 4)]
    of_others = [each for each in await usage.to_replay("r1", 10_000) if each.deployment_id == mine]
    assert [(each.replica_id, each.used, each.floor) for each in of_others] == [("r2", 4, 13)]
    await usage.save([], [use(mine, 2)])
    assert await known(usage, mine) == [(13, 4)]


async def test_old_months_are_purged(usage: UsageStore, database: Database) -> None:
    mine = new_deployment_id()
    await usage.save([counted(mine, 1, month) for month in ("2025-09", "2025-10", MONTH)], [])
    await Checkpoints(usage, Ledger(), OwnUse("r1"), PATIENCE_SECONDS).forget(
        month_named("2026-10").begins_us
    )
    async with database.service() as connection:
        rows = await connection.fetch(
            "SELECT month FROM monthly_usage WHERE deployment_id = $1 ORDER BY month", mine
        )
    # Thirteen: that of now, and twelve before it.
    assert [row["month"] for row in rows] == ["2025-10", MONTH]


@pytest.mark.promise("P-36")
async def test_a_tenant_transaction_sees_its_own_months_alone(
    usage: UsageStore, database: Database
) -> None:
    mine, theirs = new_deployment_id(), new_deployment_id()
    other = counted(theirs, 1)._replace(tenant_id=TenantId("ten_b"))
    await usage.save([counted(mine, 1), other], [use(mine, 1)])
    async with database.tenant(TenantId("ten_b")) as connection:
        assert await connection.fetchval("SELECT array_agg(deployment_id) FROM monthly_usage") == [
            theirs
        ]
        assert await connection.fetchval("SELECT count(*) FROM local_usage") == 0


@pytest.mark.promise("P-05")
async def test_what_valkey_forgot_counts_from_what_is_saved_or_remembered(
    usage: UsageStore, client: redis.asyncio.Redis
) -> None:
    saved, remembered, unused = (new_deployment_id() for _ in range(3))
    ledger = Ledger()
    now_us = month_named(MONTH).begins_us
    _, reading = decide(Counters(used=59), Take(remembered, LIMITS, 1), now_us)
    ledger.note(remembered, TENANT, reading, now_us)
    await usage.save([counted(saved, 90), counted(remembered, 50)], [])
    checkpoints = Checkpoints(usage, ledger, OwnUse("r1"), PATIENCE_SECONDS)
    store = CounterStore(client, checkpoints, PATIENCE_SECONDS)
    readings = await store.take(
        [Take(each, LIMITS, 1) for each in (saved, remembered, unused)], now_us
    )
    assert [reading.used for reading in readings] == [91, 61, 1]


async def test_without_postgres_an_unknown_month_is_refused(databases: Databases) -> None:
    own = await databases.fresh("ratelimit")
    async with open_database(own, "ratelimit", SERVICES / "ratelimit" / "migrations") as opened:
        checkpoints = Checkpoints(UsageStore(opened), Ledger(), OwnUse("r1"), PATIENCE_SECONDS)
        await opened.pool.close()
        with pytest.raises(MonthUnknownError):
            await checkpoints.floors([new_deployment_id()], MONTH)
        assert await checkpoints.starts([new_deployment_id()], MONTH) == {}


@dataclass
class Journey:
    """Processes that admit without Valkey, replay, and write it down, in any order."""

    deployment: DeploymentId
    totals: dict[str, int] = field(default_factory=dict)

    async def step(self, name: str, replica: str, usage: UsageStore, replays: ReplayStore) -> None:
        if name == "admit":
            self.totals[replica] = self.totals.get(replica, 0) + 3
            return
        # As a process that died and another that found its row: both replay, nobody waits.
        uses = [use(self.deployment, total, replica=who) for who, total in self.totals.items()]
        await usage.save([], uses)
        rows = [
            row
            for row in await usage.to_replay("nobody", 10_000)
            if row.deployment_id == self.deployment
        ]
        first, second = await asyncio.gather(replays.replay(rows), replays.replay(rows))
        if name == "settle":
            await usage.save([], [], first)
            await usage.save([], [], second)


steps = st.lists(
    st.tuples(
        st.sampled_from(["admit", "replay", "settle", "forget"]), st.sampled_from(["r1", "r2"])
    ),
    max_size=12,
)


@pytest.mark.promise("P-05")
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=steps)
async def test_each_call_admitted_without_valkey_is_counted_once(
    usage: UsageStore,
    replays: ReplayStore,
    client: redis.asyncio.Redis,
    steps: Sequence[tuple[str, str]],
) -> None:
    """Whoever replays how often, and dies in between; also when Valkey then loses everything."""
    journey = Journey(new_deployment_id())
    for name, replica in [*steps, ("settle", "r1")]:
        if name == "forget":
            await forget(client, journey.deployment)
        else:
            await journey.step(name, replica, usage, replays)
    total = sum(journey.totals.values())
    assert await known(usage, journey.deployment) == [(total, 0)]
    assert int(await client.get(month_key(journey.deployment, MONTH)) or 0) in {0, total}


async def test_a_replay_takes_its_calls_out_of_the_burst_as_well(
    replays: ReplayStore, client: redis.asyncio.Redis, usage: UsageStore
) -> None:
    burst = 1_000_000
    deployment, limits = new_deployment_id(), Limits(Ceiling(1, burst), None)
    store = CounterStore(
        client, Checkpoints(usage, Ledger(), OwnUse("r1"), PATIENCE_SECONDS), PATIENCE_SECONDS
    )
    (before,) = await store.take([Take(deployment, limits, 5)])
    assert before.burst_remaining == burst - 5
    mine = use(deployment, 4)._replace(limits=limits, month=before.month.name)
    for _ in range(2):
        (done,) = await replays.replay([mine])
        assert done.counted == 9
        (after,) = await store.take([Take(deployment, limits, 0)])
        seconds = -(-(after.at_us - before.at_us) // MICROSECONDS)
        assert burst - 9 <= after.burst_remaining <= burst - 9 + seconds
    await replays.replay([mine._replace(used=2 * burst)])
    (refused,) = await store.take([Take(deployment, limits, burst // 2)])
    assert refused.decision is Decision.BURST_EXCEEDED
