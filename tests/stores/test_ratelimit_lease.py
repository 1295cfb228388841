"""Leases next to the counters, on a real Valkey as the service's own user."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.local.valkey import ValkeyServer
from services.ratelimit.domain import Counters, Decision, Limits, Take, decide
from services.ratelimit.gcra import HELD_US, LEASE_US, MICROSECONDS, Ceiling
from services.ratelimit.leases import (
    MAX_LEASES,
    Grant,
    LeaseId,
    Return,
    Returned,
    Want,
    give_back,
    lease,
    named,
    new_token,
)
from services.ratelimit.months import microseconds, month_at, month_of
from services.ratelimit.store import CounterStore, bucket_key, month_key
from services.shared.ids import DeploymentId, new_deployment_id
from services.shared.redis import Valkey, open_valkey
from services.shared.settings import ValkeySettings
from tests.floors import KnownMonths

NOW_US = microseconds(datetime(2026, 11, 22, 12, tzinfo=UTC))
PATIENCE_SECONDS = 20.0
LIMITS = (
    Limits(Ceiling(10, 20), 60),
    Limits(Ceiling(3, 7), 80),
    Limits(Ceiling(1_000, 2_000), None),
)

# Gaps from within a lease to over the end of a month.
gaps = st.one_of(
    st.integers(0, LEASE_US), st.integers(0, LEASE_US), st.integers(0, 40 * 86_400 * MICROSECONDS)
)
journeys = st.lists(
    st.tuples(
        gaps,
        st.sampled_from(LIMITS),
        st.sampled_from(("take", "lease", "back")),
        st.integers(1, 25),
    ),
    min_size=1,
    max_size=25,
)


@pytest.fixture(scope="module")
async def client(valkey: ValkeyServer) -> AsyncIterator[Valkey]:
    async with open_valkey(_settings(valkey)) as client:
        yield client


@pytest.fixture(scope="module")
def store(client: Valkey) -> CounterStore:
    return CounterStore(client, KnownMonths(), PATIENCE_SECONDS)


def _settings(server: ValkeyServer) -> ValkeySettings:
    return ValkeySettings(
        valkey_host=server.host,
        valkey_port=server.port,
        valkey_user="ratelimit",
        valkey_password_file=server.password_files["ratelimit"],
    )


async def _lease(
    store: CounterStore, deployment: DeploymentId, limits: Limits, calls: int, now: int | None
) -> Grant:
    (grant,) = await store.lease([Want(deployment, limits, calls, new_token())], now)
    return grant


async def _back(store: CounterStore, lease_id: LeaseId, unused: int, now: int | None = None) -> int:
    (returned,) = await store.give_back([Return(lease_id, unused)], now)
    assert returned is not None
    return returned.calls


@settings(max_examples=150, deadline=None)
@given(journey=journeys, start=st.integers(0, 365 * 86_400 * MICROSECONDS))
async def test_the_scripts_lease_and_take_back_as_the_rules_do(
    store: CounterStore, journey: list[tuple[int, Limits, str, int]], start: int
) -> None:
    deployment, now, month, model = new_deployment_id(), NOW_US + start, "", Counters()
    out: list[LeaseId] = []
    for gap, limits, what, calls in journey:
        now += gap
        if month_of_us(now) != month:
            month, model = month_of_us(now), Counters(model.bucket, 0)
        if what == "take":
            take = Take(deployment, limits, calls)
            model, expected = decide(model, take, now)
            assert await store.take([take], now) == [expected]
        elif what == "lease":
            want = Want(deployment, limits, calls, new_token())
            model, granted = lease(model, want, now)
            assert await store.lease([want], now) == [granted]
            out += [granted.lease_id] if granted.calls else []
        elif out:
            model = await _given_back(store, model, out.pop(0), calls, now)


async def _given_back(
    store: CounterStore, model: Counters, lease_id: LeaseId, unused: int, now: int
) -> Counters:
    """Gives back in both, and returns the model's counters of the present month."""
    found = named(lease_id)
    assert found is not None
    after, back = give_back(model, f"{found.month}.{found.token}", unused, now)
    (returned,) = await store.give_back([Return(lease_id, unused)], now)
    assert returned is not None
    assert returned.calls == back
    if found.month != month_of_us(now):
        # Calls of last month come back to last month.
        return replace(after, used=model.used)
    assert not back or returned.used == after.used
    return after


def month_of_us(now: int) -> str:
    return month_at(now).name


@pytest.mark.promise("P-05")
async def test_replicas_and_clients_with_leases_and_single_calls_never_admit_more_than_the_month(
    valkey: ValkeyServer,
) -> None:
    monthly, deployment = 3_000, new_deployment_id()
    limits = Limits(Ceiling(1_000_000, 1_000_000), monthly)

    async def replica(seed: int) -> int:
        async with open_valkey(_settings(valkey)) as client:
            store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
            clients = [_client(store, deployment, limits, seed * 10 + each) for each in range(6)]
            return sum(await asyncio.gather(*clients))

    admitted = sum(await asyncio.gather(*(replica(seed) for seed in range(4))))
    async with open_valkey(_settings(valkey)) as client:
        store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
        # Whatever came back can be used: not one call is lost either.
        (look,) = await store.take([Take(deployment, limits, 0)])
        assert look.used == admitted <= monthly
        while (await store.take([Take(deployment, limits, 1)]))[0].decision is Decision.ALLOWED:
            admitted += 1
    assert admitted == monthly


async def _client(store: CounterStore, deployment: DeploymentId, limits: Limits, seed: int) -> int:
    """Returns how many calls it admitted: some one by one, some out of leases."""
    chance, admitted = random.Random(seed), 0  # noqa: S311 a test's own dice
    for _ in range(25):
        if chance.random() < 0.5:
            (reading,) = await store.take([Take(deployment, limits, 1)])
            admitted += reading.decision is Decision.ALLOWED
            continue
        grant = await _lease(store, deployment, limits, chance.randrange(1, 40), None)
        if grant.calls:
            used = chance.randrange(grant.calls + 1)
            back = await _back(store, grant.lease_id, grant.calls - used)
            # One that ended meanwhile counts as used, whether it was or not.
            admitted += grant.calls - back
    return admitted


@pytest.mark.promise("P-05")
async def test_replicas_and_clients_never_admit_more_than_the_burst(valkey: ValkeyServer) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(1, 200), None)

    async def replica() -> int:
        async with open_valkey(_settings(valkey)) as client:
            store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
            grants = await asyncio.gather(
                *(_lease(store, deployment, limits, 7, NOW_US) for _ in range(10))
            )
            readings = await store.take([Take(deployment, limits, 1)] * 40, NOW_US)
            taken = sum(reading.decision is Decision.ALLOWED for reading in readings)
            return taken + sum(grant.calls for grant in grants)

    assert sum(await asyncio.gather(*(replica() for _ in range(5)))) == 200


@pytest.mark.promise("P-05")
async def test_a_lease_is_given_back_once_however_many_try_at_the_same_moment(
    store: CounterStore,
) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(10, 100), 100)
    grant = await _lease(store, deployment, limits, 50, NOW_US)
    tries = await asyncio.gather(*(_back(store, grant.lease_id, 30, NOW_US) for _ in range(20)))
    assert sorted(tries) == [0] * 19 + [30]
    batch = await store.give_back([Return(grant.lease_id, 30)] * 5, NOW_US)
    assert [each.calls for each in batch if each] == [0] * 5
    (look,) = await store.take([Take(deployment, limits, 0)], NOW_US)
    assert (look.used, look.burst_remaining) == (20, 80)


async def test_who_does_not_know_the_id_gives_nothing_back(store: CounterStore) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(10, 100), 100)
    grant = await _lease(store, deployment, limits, 50, NOW_US)
    month = month_of(datetime(2026, 11, 22, tzinfo=UTC))
    forged = [
        LeaseId(f"{deployment}.{month}.{new_token()}"),
        LeaseId(f"{deployment}.2026-10.{grant.lease_id.rpartition('.')[2]}"),
        LeaseId(f"{new_deployment_id()}.{month}.{grant.lease_id.rpartition('.')[2]}"),
    ]
    returned = await store.give_back([Return(each, 50) for each in forged], NOW_US)
    assert [each and each.calls for each in returned] == [0, 0, 0]
    assert await store.give_back([Return(LeaseId("x"), 50)], NOW_US) == [None]
    (look,) = await store.take([Take(deployment, limits, 0)], NOW_US)
    assert look.used == 50


async def test_calls_of_last_month_come_back_to_last_month(
    client: Valkey, store: CounterStore
) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(10, 100), 100)
    december = microseconds(datetime(2026, 12, 1, tzinfo=UTC))
    grant = await _lease(store, deployment, limits, 50, december - 1)
    await store.take([Take(deployment, limits, 3)], december + 1)
    (returned,) = await store.give_back([Return(grant.lease_id, 40)], december + 2)
    assert returned == Returned(40, deployment, "2026-11", 10)
    assert await client.get(month_key(deployment, "2026-11")) == b"10"
    assert await client.get(month_key(deployment, "2026-12")) == b"3"
    assert await client.ttl(month_key(deployment, "2026-11")) > 0


async def test_one_that_ended_is_none_and_its_calls_stay_counted(store: CounterStore) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(10, 100), 100)
    grant = await _lease(store, deployment, limits, 50, NOW_US)
    assert await _back(store, grant.lease_id, 50, NOW_US + HELD_US) == 0
    (look,) = await store.take([Take(deployment, limits, 0)], NOW_US + HELD_US)
    assert (look.used, look.burst_remaining) == (50, 50)


async def test_a_deployment_has_only_so_many_leases(store: CounterStore) -> None:
    deployment, limits = new_deployment_id(), Limits(Ceiling(10, 1_000), None)
    wants = [Want(deployment, limits, 1, new_token()) for _ in range(MAX_LEASES + 3)]
    grants = await store.lease(wants, NOW_US)
    assert [grant.calls for grant in grants] == [1] * MAX_LEASES + [0] * 3
    assert grants[-1].reading.wait_us == HELD_US


async def test_a_bucket_with_leases_is_gone_once_all_is_worked_off(
    client: Valkey, store: CounterStore
) -> None:
    deployment = new_deployment_id()
    await _lease(store, deployment, Limits(Ceiling(10, 20), None), 20, None)
    assert 0 < await client.pttl(bucket_key(deployment)) <= 5_000
