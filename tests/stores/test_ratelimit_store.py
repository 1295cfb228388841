"""The script next to the counters, on a real Valkey as the service's own user."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from deploy.local.valkey import ValkeyServer, valkey_server
from services.ratelimit.domain import Counters, Decision, Limits, Reading, Take, decide
from services.ratelimit.gcra import MICROSECONDS, Ceiling
from services.ratelimit.months import microseconds, month_of
from services.ratelimit.store import CounterStore, bucket_key, month_key
from services.shared.errors import UnavailableError
from services.shared.ids import new_deployment_id
from services.shared.redis import Valkey, open_valkey
from services.shared.settings import ValkeySettings
from tests.floors import KnownMonths

NOW_US = microseconds(datetime(2026, 11, 22, 12, tzinfo=UTC))
LIMITS = (
    Limits(Ceiling(10, 20), 30),
    Limits(Ceiling(3, 7), 40),
    Limits(Ceiling(1_000, 2_000), None),
)
PATIENCE_SECONDS = 0.8

# Gaps from within a burst to over the end of a month.
gaps = st.one_of(st.integers(0, MICROSECONDS), st.integers(0, 40 * 86_400 * MICROSECONDS))
journeys = st.lists(
    st.tuples(gaps, st.sampled_from(LIMITS), st.integers(0, 25)), min_size=1, max_size=25
)


@pytest.fixture(scope="session")
async def client(valkey: ValkeyServer) -> AsyncIterator[Valkey]:
    async with open_valkey(_settings(valkey)) as client:
        yield client


@pytest.fixture(scope="session")
def store(client: Valkey) -> CounterStore:
    return CounterStore(client, KnownMonths(), PATIENCE_SECONDS)


def _settings(server: ValkeyServer) -> ValkeySettings:
    return ValkeySettings(
        valkey_host=server.host,
        valkey_port=server.port,
        valkey_user="ratelimit",
        valkey_password_file=server.password_files["ratelimit"],
    )


async def _take(store: CounterStore, take: Take, now_us: int | None = None) -> Reading:
    (reading,) = await store.take([take], now_us)
    return reading


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(journey=journeys, start=st.integers(0, 365 * 86_400 * MICROSECONDS))
async def test_the_script_decides_as_the_rule_does(
    store: CounterStore, journey: list[tuple[int, Limits, int]], start: int
) -> None:
    deployment, now, month, model = new_deployment_id(), NOW_US + start, "", Counters()
    for gap, limits, cost in journey:
        now += gap
        take = Take(deployment, limits, cost)
        reading = await _take(store, take, now)
        if month_of(reading.at) != month:
            month, model = month_of(reading.at), Counters(model.bucket, 0)
        model, expected = decide(model, take, now)
        assert reading == expected


@settings(max_examples=200, deadline=None)
@given(
    at=st.datetimes(datetime(1999, 12, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 hypothesis wants naive bounds
)
async def test_the_script_knows_the_calendar(
    client: Valkey, store: CounterStore, at: datetime
) -> None:
    deployment = new_deployment_id()
    await _take(store, Take(deployment, LIMITS[0], 3), microseconds(at))
    assert await client.get(month_key(deployment, month_of(at))) == b"3"


@pytest.mark.promise("P-05")
async def test_many_clients_at_once_are_admitted_exactly_the_burst(
    valkey: ValkeyServer,
) -> None:
    take = Take(new_deployment_id(), Limits(Ceiling(10, 50), None), 1)

    async def one_client() -> int:
        async with open_valkey(_settings(valkey)) as client:
            store = CounterStore(client, KnownMonths(), 5.0)
            readings = [await _take(store, take, NOW_US) for _ in range(20)]
        return sum(reading.decision is Decision.ALLOWED for reading in readings)

    assert sum(await asyncio.gather(*(one_client() for _ in range(10)))) == 50


@pytest.mark.promise("P-05")
async def test_many_clients_at_once_are_admitted_exactly_the_months_calls(
    client: Valkey, store: CounterStore
) -> None:
    take = Take(new_deployment_id(), Limits(Ceiling(1_000_000, 1_000_000), 100), 1)
    batches = await asyncio.gather(*(store.take([take] * 17) for _ in range(20)))
    decisions = [reading.decision for batch in batches for reading in batch]
    assert decisions.count(Decision.ALLOWED) == 100
    assert decisions.count(Decision.QUOTA_EXCEEDED) == 20 * 17 - 100
    month = month_of(batches[0][0].at)
    assert await client.get(month_key(take.deployment_id, month)) == b"100"


@pytest.mark.promise("P-05")
async def test_under_the_servers_own_clock_no_more_than_burst_and_rate_are_admitted(
    store: CounterStore,
) -> None:
    ceiling = Ceiling(200, 10)
    take = Take(new_deployment_id(), Limits(ceiling, None), 1)
    readings: list[Reading] = []
    while not readings or readings[-1].at - readings[0].at < timedelta(milliseconds=400):
        readings += await store.take([take] * 20)
    admitted = [reading.at for reading in readings if reading.decision is Decision.ALLOWED]
    window = (admitted[-1] - admitted[0]).total_seconds()
    assert ceiling.burst < len(admitted) <= ceiling.burst + ceiling.rate_per_second * window


@pytest.mark.promise("P-05")
async def test_a_caller_who_waits_as_told_is_admitted_under_the_servers_clock(
    store: CounterStore,
) -> None:
    take = Take(new_deployment_id(), Limits(Ceiling(10, 2), None), 2)
    assert (await _take(store, take)).decision is Decision.ALLOWED
    refused = await _take(store, take)
    assert refused.decision is Decision.BURST_EXCEEDED
    assert refused.retry_after is not None
    await asyncio.sleep(refused.retry_after.total_seconds())
    assert (await _take(store, take)).decision is Decision.ALLOWED


@pytest.mark.promise("P-05")
async def test_refused_calls_burn_no_quota(client: Valkey, store: CounterStore) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(10, 5), 100)
    await _take(store, Take(deployment, limits, 5), NOW_US)
    refused = await store.take([Take(deployment, limits, 1)] * 50, NOW_US)
    assert {reading.decision for reading in refused} == {Decision.BURST_EXCEEDED}
    assert {reading.used for reading in refused} == {5}
    assert await client.get(month_key(deployment, "2026-11")) == b"5"


async def test_a_new_month_brings_new_calls_and_the_old_count_stays_readable(
    client: Valkey, store: CounterStore
) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(1_000, 100), 100)
    december = datetime(2026, 12, 1, tzinfo=UTC)
    before = microseconds(december) - 1
    await _take(store, Take(deployment, limits, 100), before - MICROSECONDS)
    refused = await _take(store, Take(deployment, limits, 1), before)
    assert refused.decision is Decision.QUOTA_EXCEEDED
    assert refused.retry_after == timedelta(microseconds=1)
    admitted = await _take(store, Take(deployment, limits, 1), before + 1)
    assert (admitted.decision, admitted.used) == (Decision.ALLOWED, 1)
    assert await client.get(month_key(deployment, "2026-11")) == b"100"
    assert await client.get(month_key(deployment, "2026-12")) == b"1"


async def test_every_key_expires_and_both_lie_in_one_slot(
    client: Valkey, store: CounterStore
) -> None:
    deployment = new_deployment_id()
    reading = await _take(store, Take(deployment, LIMITS[0], 20))
    bucket, month = bucket_key(deployment), month_key(deployment, month_of(reading.at))
    assert key_slot(bucket.encode()) == key_slot(month.encode())
    assert 0 < await client.pttl(bucket) <= 3_000
    days = await client.ttl(month) / 86_400
    assert 40 <= days <= 72


async def test_a_cost_of_nothing_looks_and_writes_nothing(
    client: Valkey, store: CounterStore
) -> None:
    deployment = new_deployment_id()
    reading = await _take(store, Take(deployment, LIMITS[0], 0), NOW_US)
    assert (reading.decision, reading.used, reading.burst_remaining) == (Decision.ALLOWED, 0, 20)
    assert await client.exists(bucket_key(deployment)) == 0


@pytest.mark.parametrize(
    ("limits", "cost", "decision"),
    [
        (Limits(Ceiling(10, 20), None), 21, Decision.BURST_EXCEEDED),
        (Limits(Ceiling(10, 20), 15), 16, Decision.QUOTA_EXCEEDED),
        (Limits(Ceiling(1, 1), None), 1_000_000, Decision.BURST_EXCEEDED),
    ],
)
async def test_what_can_never_be_admitted_is_refused_without_a_wait(
    store: CounterStore, limits: Limits, cost: int, decision: Decision
) -> None:
    reading = await _take(store, Take(new_deployment_id(), limits, cost))
    assert (reading.decision, reading.retry_after) == (decision, None)


async def test_the_largest_numbers_stay_exact(store: CounterStore) -> None:
    take = Take(new_deployment_id(), Limits(Ceiling(1, 1_000_000), None), 999_999)
    assert (await _take(store, take, NOW_US)).burst_remaining == 1
    one = Take(take.deployment_id, take.limits, 1)
    assert (await _take(store, one, NOW_US)).burst_remaining == 0
    assert (await _take(store, one, NOW_US)).retry_after == timedelta(seconds=1)


async def test_deployments_share_no_counter(store: CounterStore) -> None:
    limits = Limits(Ceiling(1, 1), 1)
    takes = [Take(new_deployment_id(), limits, 1) for _ in range(100)]
    first, second = await store.take(takes), await store.take(takes)
    assert {reading.decision for reading in first} == {Decision.ALLOWED}
    assert {reading.decision for reading in second} == {Decision.QUOTA_EXCEEDED}


async def test_a_batch_is_one_script_call_whatever_the_shards(
    valkey: ValkeyServer, store: CounterStore
) -> None:
    takes = [Take(new_deployment_id(), LIMITS[2], 1) for _ in range(256)]
    # From the second time on the months are known.
    await store.take(takes)
    before = await _script_calls(valkey)
    assert {reading.used for reading in await store.take(takes)} == {2}
    assert await _script_calls(valkey) - before == 1


async def test_takes_of_one_deployment_in_a_batch_are_decided_in_order(
    store: CounterStore,
) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(10, 5), None)
    costs = (3, 3, 2, 1)
    readings = await store.take([Take(deployment, limits, cost) for cost in costs], NOW_US)
    allowed = [reading.decision is Decision.ALLOWED for reading in readings]
    assert allowed == [True, False, True, False]


async def test_a_server_that_does_not_know_the_script_is_taught_it(
    tmp_path: Path,
) -> None:
    takes = [Take(new_deployment_id(), LIMITS[0], 1) for _ in range(3)]
    async with valkey_server(tmp_path) as first, open_valkey(_settings(first)) as client:
        store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
        await store.take(takes)
        assert [reading.used for reading in await store.take(takes)] == [2] * 3


async def test_calls_that_are_cancelled_in_flight_never_mix_up_the_answers(
    store: CounterStore,
) -> None:
    """redis-py#2624: a reply of a cancelled request went to the next one on the connection."""
    limits = Limits(Ceiling(1_000_000, 1_000_000), None)
    deployments = {new_deployment_id(): cost for cost in range(1, 41)}
    totals = dict.fromkeys(deployments, 0)
    for turn in range(60):
        flights = [
            asyncio.create_task(store.take([Take(one, limits, cost)] * 3))
            for one, cost in deployments.items()
        ]
        # Cancelled at ever later points: while waiting, sending and reading.
        for _ in range(turn):
            await asyncio.sleep(0)
        for flight in flights[::2]:
            flight.cancel()
        outcomes = await asyncio.gather(*flights, return_exceptions=True)
        for (one, cost), outcome in zip(deployments.items(), outcomes, strict=True):
            if isinstance(outcome, asyncio.CancelledError):
                continue
            assert not isinstance(outcome, BaseException)
            used = [reading.used for reading in outcome]
            assert used == list(range(used[0], used[0] + 3 * cost, cost))
            assert used[0] % cost == 0
            assert used[0] > totals[one]
            totals[one] = used[-1]


async def test_a_valkey_that_is_away_refuses_and_comes_back(tmp_path: Path) -> None:
    take = Take(new_deployment_id(), LIMITS[0], 1)
    async with valkey_server(tmp_path / "one") as server:
        port = server.port
        async with open_valkey(_settings(server)) as client:
            store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
            await store.check()
            assert (await _take(store, take)).used == 1
    async with open_valkey(_settings(server)) as client:
        store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
        with pytest.raises(UnavailableError) as refused:
            await _take(store, take)
        assert refused.value.retry_after == timedelta(seconds=1)
        with pytest.raises(UnavailableError):
            await store.check()
        async with valkey_server(tmp_path / "one", port):
            assert (await _take(store, take)).used == 2


async def test_a_valkey_that_hangs_is_waited_for_no_longer_than_the_patience(
    tmp_path: Path,
) -> None:
    async with valkey_server(tmp_path / "hung") as server, open_valkey(_settings(server)) as client:
        store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
        take = Take(new_deployment_id(), LIMITS[0], 1)
        await _take(store, take)
        server_pid = int((await _operator_info(server))["process_id"])
        os.kill(server_pid, signal.SIGSTOP)
        try:
            # It stays stopped: that they end at all shows that they gave up.
            async with asyncio.timeout(30):
                hung = await asyncio.gather(
                    *(_take(store, take) for _ in range(50)), return_exceptions=True
                )
            assert {type(outcome) for outcome in hung} == {UnavailableError}
        finally:
            os.kill(server_pid, signal.SIGCONT)
        assert (await _take(store, take)).decision is Decision.ALLOWED


async def _script_calls(server: ValkeyServer) -> int:
    stats: dict[str, Any] = await _operator_info(server, "commandstats")
    return sum(int(stats[f"cmdstat_{name}"]["calls"]) for name in ("evalsha", "eval"))


async def _operator_info(server: ValkeyServer, section: str = "server") -> dict[str, Any]:
    password = server.password_files["operator"].read_text()
    async with redis.asyncio.Redis(
        host=server.host, port=server.port, username="operator", password=password
    ) as operator:
        return dict(await operator.info(section))
