"""Life without Valkey: killed, hung, emptied; and the way back, each call counted once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from structlog.testing import capture_logs

from deploy.local.ports import free_ports
from services.ratelimit.circuit import State
from services.ratelimit.domain import Decision, Limits
from services.ratelimit.gcra import Ceiling
from services.ratelimit.leases import Want, new_token
from services.ratelimit.store import month_key
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, new_deployment_id
from services.shared.settings import PostgresSettings
from tests.databases import Databases
from tests.losable_valkey import LosableValkey, losable_valkey
from tests.ratelimit_replicas import (
    TENANT,
    admitted,
    replica,
    saved,
    take,
    until,
    until_sharing,
    until_state,
)

WIDE = Ceiling(1_000_000, 1_000_000)
MONTHLY = Limits(WIDE, 90)


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[LosableValkey]:
    async with losable_valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def database(databases: Databases) -> PostgresSettings:
    return await databases.fresh("ratelimit")


@pytest.fixture(scope="module")
def measured() -> InMemoryMetricReader:
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    return reader


def numbers(reader: InMemoryMetricReader, name: str) -> dict[str, float]:
    """Returns the values of a metric by state; by nothing, when it has none."""
    found = {}
    measured = reader.get_metrics_data()
    for resource in measured.resource_metrics if measured else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                if metric.name == name:
                    for point in metric.data.data_points:
                        assert isinstance(point, NumberDataPoint)
                        state = str((point.attributes or {}).get("state", ""))
                        found[state] = point.value
    return found


async def counted(valkey: LosableValkey, deployment: DeploymentId, month: str) -> int | None:
    return await valkey.get(month_key(deployment, month))


@pytest.mark.promise("P-05")
async def test_a_killed_valkey_is_done_without_and_learns_what_was_used(
    valkey: LosableValkey, database: PostgresSettings, measured: InMemoryMetricReader
) -> None:
    deployment = new_deployment_id()
    before = numbers(measured, "bulkhead.ratelimit.valkey_changes")
    async with replica(valkey, database) as only:
        assert await admitted(only, deployment, MONTHLY, 30) == 30
        await until_sharing(only, 1)
        with capture_logs() as logs:
            await valkey.kill()
            reading = await take(only, deployment, MONTHLY)
            assert (reading.decision, reading.used) == (Decision.ALLOWED, 31)
            assert only.state is State.LOCAL
            assert numbers(measured, "bulkhead.ratelimit.valkey_away") == {"": 1}
            await valkey.start()
            await until_state(only, State.VALKEY)
        after = numbers(measured, "bulkhead.ratelimit.valkey_changes")
        assert await counted(valkey, deployment, reading.month.name) == 31
        assert (await take(only, deployment, MONTHLY)).used == 32
        assert await admitted(only, deployment, MONTHLY, 90) == 58
    changes = [entry for entry in logs if entry["event"] == "limits are decided by"]
    assert [(entry["state"], entry["log_level"]) for entry in changes] == [
        (State.LOCAL, "warning"),
        (State.VALKEY, "info"),
    ]
    assert numbers(measured, "bulkhead.ratelimit.valkey_away") == {"": 0}
    for state in ("local", "valkey"):
        assert after[state] == before.get(state, 0) + 1


@pytest.mark.promise("P-05")
async def test_a_valkey_that_comes_back_empty_learns_all_of_the_month(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment = new_deployment_id()
    async with replica(valkey, database) as only:
        assert await admitted(only, deployment, MONTHLY, 30) == 30
        await until_sharing(only, 1)
        await valkey.kill(forget=True)
        assert await admitted(only, deployment, MONTHLY, 20) == 20
        await valkey.start()
        await until_state(only, State.VALKEY)
        assert (await take(only, deployment, MONTHLY, 0)).used == 50
        assert await admitted(only, deployment, MONTHLY, 90) == 40


@pytest.mark.promise("P-05")
async def test_three_replicas_without_valkey_admit_in_sum_what_one_limit_holds(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    monthly, bursty = new_deployment_id(), new_deployment_id()
    burst = Limits(Ceiling(1, 30), None)
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(replica(valkey, database)) for _ in range(3)]
        assert await admitted(replicas[0], monthly, MONTHLY, 30) == 30
        first = await take(replicas[0], bursty, burst, 30)
        assert first.decision is Decision.ALLOWED
        # All have to know of each other, and of what was used: that is what checkpoints are for.
        for each in replicas:
            await until_sharing(each, 3)
            assert (await take(each, monthly, MONTHLY, 0)).used == 30
        await valkey.kill()
        for each in replicas:
            await until_state(each, State.LOCAL)
        shares = [await admitted(each, monthly, MONTHLY, 90) for each in replicas]
        assert shares == [20, 20, 20]
        calls = sum([await admitted(each, bursty, burst, 60) for each in replicas])
        last = await take(replicas[0], bursty, burst, 0)
        # The burst was just used up: each second since brings one call, to all of them together.
        assert calls <= (last.at_us - first.at_us) / burst.ceiling.interval_us
        await valkey.start()
        for each in replicas:
            await until_state(each, State.VALKEY)
        assert await counted(valkey, monthly, last.month.name) == 90
        assert [await admitted(each, monthly, MONTHLY) for each in replicas] == [0, 0, 0]
        assert await counted(valkey, bursty, last.month.name) == 30 + calls


@pytest.mark.promise("P-05")
async def test_a_hung_valkey_is_done_without_and_asked_again_when_it_goes_on(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment = new_deployment_id()
    async with replica(valkey, database, valkey_patience_seconds=0.3) as only:
        await until_sharing(only, 1)
        assert (await take(only, deployment, MONTHLY, 0)).used == 0
        valkey.hang()
        try:
            calls = await asyncio.gather(*(admitted(only, deployment, MONTHLY) for _ in range(20)))
            # It still hangs: that they were answered shows that nobody waited for it.
            assert sum(calls) == 20
            assert only.state is State.LOCAL
            assert sum([await admitted(only, deployment, MONTHLY) for _ in range(20)]) == 20
        finally:
            valkey.go_on()
        await until_state(only, State.VALKEY)
        used = (await take(only, deployment, MONTHLY, 0)).used
        # What was on its way when it hung may be counted there as well: never too few.
        assert 40 <= used <= 60
        assert await admitted(only, deployment, MONTHLY, 90) == 90 - used


@pytest.mark.promise("P-05")
async def test_after_the_outage_has_lasted_too_long_calls_are_refused_until_it_is_over(
    valkey: LosableValkey, database: PostgresSettings, measured: InMemoryMetricReader
) -> None:
    deployment = new_deployment_id()
    async with replica(valkey, database, valkey_outage_seconds=0.5) as only:
        assert await admitted(only, deployment, MONTHLY, 10) == 10
        await only.check()
        with capture_logs() as logs:
            await valkey.kill()
            await until_state(only, State.REFUSING)
            with pytest.raises(UnavailableError):
                await take(only, deployment, MONTHLY)
            with pytest.raises(UnavailableError):
                await only.check()
            assert numbers(measured, "bulkhead.ratelimit.valkey_away") == {"": 2}
            await valkey.start()
            await until_state(only, State.VALKEY)
        await only.check()
        assert (await take(only, deployment, MONTHLY)).used == 11
    changes = [entry["state"] for entry in logs if entry["event"] == "limits are decided by"]
    assert changes == [State.LOCAL, State.REFUSING, State.VALKEY]


@pytest.mark.promise("P-05")
async def test_what_a_replica_admitted_that_ended_in_the_outage_is_replayed_by_another(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment = new_deployment_id()
    async with AsyncExitStack() as stack:
        ends = await stack.enter_async_context(AsyncExitStack())
        first = await ends.enter_async_context(replica(valkey, database))
        other = await stack.enter_async_context(replica(valkey, database))
        month = (await take(first, deployment, MONTHLY)).month.name
        for each in (first, other):
            await until_sharing(each, 2)
        await valkey.kill()
        # A bucket that begins without room has some before long, at this rate.
        await until_state(first, State.LOCAL)

        async def admits() -> bool:
            return await admitted(first, deployment, MONTHLY, 10) == 10

        await until(admits)
        await ends.aclose()
        await until_state(other, State.LOCAL)
        # It counts from what the first one admitted, too.
        assert (await take(other, deployment, MONTHLY)).used == 12
        await valkey.start()
        await until_state(other, State.VALKEY)

        async def all_is_counted() -> bool:
            return await counted(valkey, deployment, month) == 12

        await until(all_is_counted)


async def test_without_valkey_nothing_is_leased(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment = new_deployment_id()
    want = Want(deployment, MONTHLY, 10, new_token(), TENANT)
    async with replica(valkey, database) as only:
        (grant,) = await only.lease([want])
        assert grant.calls == 10
        await valkey.kill()
        await until_state(only, State.LOCAL)
        with pytest.raises(UnavailableError):
            await only.lease([want._replace(token=new_token())])
        with pytest.raises(UnavailableError):
            await only.give_back([])
        await until_sharing(only, 1)
        # Those on lease count.
        assert (await take(only, deployment, MONTHLY, 0)).used == 10


@pytest.mark.promise("P-05")
async def test_a_replica_that_is_cut_off_admits_its_share_and_others_count_it(
    valkey: LosableValkey, database: PostgresSettings
) -> None:
    deployment = new_deployment_id()
    elsewhere = free_ports(1)[0]
    async with (
        replica(valkey, database) as one,
        replica(valkey, database, valkey_port=elsewhere) as cut_off,
    ):
        for each in (one, cut_off):
            await until_sharing(each, 2)
        await until_state(cut_off, State.LOCAL)
        assert await admitted(one, deployment, MONTHLY, 30) == 30
        month = (await take(one, deployment, MONTHLY, 0)).month.name

        async def is_saved() -> bool:
            return await saved(database, deployment, month) == 30

        await until(is_saved)
        assert await admitted(cut_off, deployment, MONTHLY, 90) == 30

        async def is_counted() -> bool:
            return await counted(valkey, deployment, month) == 60

        await until(is_counted)
        assert one.state is State.VALKEY
        assert await admitted(one, deployment, MONTHLY, 90) == 30
        assert await admitted(cut_off, deployment, MONTHLY, 90) == 0
