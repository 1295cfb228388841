"""Usage outlives Valkey: restarts, losses under load, and a Postgres that is away."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import structlog

from services.ratelimit.circuit import Circuit, State
from services.ratelimit.domain import Decision, Limits, Take
from services.ratelimit.gcra import Ceiling
from services.shared.ids import DeploymentId, new_deployment_id
from services.shared.settings import PostgresSettings
from tests.databases import SERVICES, Databases
from tests.losable_valkey import LosableValkey, losable_valkey
from tests.ratelimit_replicas import TENANT, admitted, replica, saved, take, until

WIDE = Ceiling(1_000_000, 1_000_000)


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[LosableValkey]:
    async with losable_valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def database(databases: Databases) -> PostgresSettings:
    return await databases.fresh("ratelimit")


@asynccontextmanager
async def postgres_away(databases: Databases, database: PostgresSettings) -> AsyncIterator[None]:
    """Refuses every connection to the database for the length of the block."""
    name = database.postgres_database
    superuser = await databases.postgres.connect()
    try:
        await superuser.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await superuser.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        yield
        await superuser.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
    finally:
        await superuser.close()


@pytest.mark.promise("P-05")
async def test_a_clean_restart_of_both_admits_exactly_the_months_calls(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment, limits = new_deployment_id(), Limits(WIDE, 100)
    # Never in time: what is saved is saved when the replica is drained.
    async with replica(valkey, database, checkpoint_seconds=60) as first:
        assert await admitted(first, deployment, limits, 64) == 64
    await valkey.kill(forget=True)
    await valkey.start()
    async with replica(valkey, database) as second:
        assert (await take(second, deployment, limits, 0)).used == 64
        assert await admitted(second, deployment, limits, 100) == 36


@pytest.mark.promise("P-05")
async def test_one_replica_alone_loses_nothing_when_valkey_does_under_load(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment, limits = new_deployment_id(), Limits(WIDE, 2_000)
    async with replica(valkey, database) as only:
        total = 0
        for number in range(60):
            batches = await asyncio.gather(
                *(admitted(only, deployment, limits, 10) for _ in range(4))
            )
            total += sum(batches)
            if number % 10 == 5:
                await valkey.flush()
        assert total == 2_000
        assert (await take(only, deployment, limits, 0)).used == 2_000


async def ended(process: asyncio.subprocess.Process) -> None:
    """Kills the process if it still runs."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


class Callers:
    """Callers of several replicas, until the month is used up."""

    def __init__(self, replicas: list[Circuit], deployment: DeploymentId, limits: Limits) -> None:
        self.admitted = 0
        self._tasks = [
            asyncio.create_task(self._call(each, deployment, limits))
            for each in replicas
            for _ in range(2)
        ]

    async def done(self) -> None:
        await asyncio.gather(*self._tasks)

    async def _call(self, circuit: Circuit, deployment: DeploymentId, limits: Limits) -> None:
        while True:
            calls = await admitted(circuit, deployment, limits, 4)
            self.admitted += calls
            if calls < 4:
                return
            await asyncio.sleep(0.002)


@pytest.mark.promise("P-05")
@pytest.mark.parametrize("first_asked", ["one that counted", "one that knows nothing"])
async def test_a_loss_under_load_costs_no_more_than_was_admitted_since_the_last_checkpoint(
    valkey: LosableValkey,
    database: PostgresSettings,
    first_asked: str,
) -> None:
    deployment, limits = new_deployment_id(), Limits(WIDE, 12_000)
    async with AsyncExitStack() as stack:
        idle, *replicas = [
            await stack.enter_async_context(replica(valkey, database)) for _ in range(4)
        ]
        month = (await take(replicas[0], deployment, limits, 0)).month.name
        callers = Callers(replicas, deployment, limits)

        async def half_used() -> bool:
            return callers.admitted > 6_000

        await until(half_used)
        checkpointed = await saved(database, deployment, month)
        await valkey.flush()
        if first_asked == "one that knows nothing":
            await take(idle, deployment, limits, 0)
        since_checkpoint = callers.admitted - checkpointed
        await callers.done()
        overshoot = callers.admitted - 12_000
        structlog.get_logger().info("measured", overshoot=overshoot, bound=since_checkpoint)
        assert 0 <= overshoot <= since_checkpoint
        # What was lost is lost for good: nothing is admitted after it, by any of them.
        for each in (idle, *replicas):
            assert await admitted(each, deployment, limits) == 0


@pytest.mark.promise("P-05")
async def test_a_replica_killed_together_with_valkey_loses_what_it_did_not_write_down(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment, quota = new_deployment_id(), 5_000
    stores = database.model_dump() | valkey.settings().model_dump()
    environment = {f"BULKHEAD_{name.upper()}": str(value) for name, value in stores.items()}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.ratelimit_process", deployment, str(quota)),
        cwd=SERVICES.parent,
        env=os.environ | environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(ended, process)
        survivor = await stack.enter_async_context(replica(valkey, database))
        limits = Limits(WIDE, quota)
        month = (await take(survivor, new_deployment_id(), limits, 0)).month.name
        before = 0
        while before < 400 or not await saved(database, deployment, month):
            before += int(await process.stdout.readline())
        process.kill()
        before += sum(map(int, (await process.stdout.read()).split()))
        written = await saved(database, deployment, month)
        await valkey.flush()
        after = await admitted(survivor, deployment, limits, 2 * quota)
        structlog.get_logger().info("measured", overshoot=before + after - quota, of=before)
        # The others count on from what it wrote down last.
        assert (written > 0, written + after) == (True, quota)


@pytest.mark.promise("P-05")
async def test_usage_reads_right_after_a_loss(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment, limits = new_deployment_id(), Limits(WIDE, None)
    async with replica(valkey, database) as one, replica(valkey, database) as other:
        assert await admitted(one, deployment, limits, 41) == 41
        month = (await take(one, deployment, limits, 0)).month.name

        async def is_saved() -> bool:
            return await saved(database, deployment, month) == 41

        await until(is_saved)
        await valkey.flush()
        assert (await take(other, deployment, limits, 0)).used == 41


@pytest.mark.promise("P-05")
async def test_without_postgres_known_months_go_on_and_unknown_ones_are_refused(
    valkey: LosableValkey, database: PostgresSettings, databases: Databases
) -> None:
    known, unknown = new_deployment_id(), new_deployment_id()
    limits = Limits(WIDE, 100)
    async with replica(valkey, database, checkpoint_seconds=0.05) as only:
        month = (await take(only, known, limits)).month.name
        async with postgres_away(databases, database):
            for used in range(2, 12):
                reading = await take(only, known, limits)
                assert (reading.decision, reading.used) == (Decision.ALLOWED, used)
            # In one batch: who is not known is not decided, and nobody else is disturbed.
            calls = [Take(each, limits, 1, TENANT) for each in (unknown, known, unknown)]
            lost, counted, again = await only.take(calls)
            assert {lost.decision, again.decision} == {Decision.UNAVAILABLE}
            assert (counted.decision, counted.used) == (Decision.ALLOWED, 12)
            # It is Postgres that is away: nothing else is made of it.
            assert only.state is State.VALKEY
            await valkey.flush()
            assert (await take(only, known, limits)).decision is Decision.UNAVAILABLE

        async def is_saved() -> bool:
            return await saved(database, known, month) == 12

        await until(is_saved)
        assert (await take(only, known, limits)).used == 13
        assert (await take(only, unknown, limits)).used == 1
