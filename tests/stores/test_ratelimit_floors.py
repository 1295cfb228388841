"""A month that Valkey does not remember counts from what is known durably."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest

from deploy.local.valkey import ValkeyServer
from services.ratelimit.domain import Decision, Limits, Take
from services.ratelimit.gcra import Ceiling
from services.ratelimit.leases import Want, new_token
from services.ratelimit.months import microseconds
from services.ratelimit.store import CounterStore, month_key
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, new_deployment_id
from services.shared.redis import Valkey, open_valkey
from services.shared.settings import ValkeySettings
from tests.floors import KnownMonths

NOW_US = microseconds(datetime(2026, 11, 22, 12, tzinfo=UTC))
DECEMBER_US = microseconds(datetime(2026, 12, 1, tzinfo=UTC))
LIMITS = Limits(Ceiling(1_000, 1_000), 100)
PATIENCE_SECONDS = 20.0


@pytest.fixture(scope="module")
async def client(valkey: ValkeyServer) -> AsyncIterator[Valkey]:
    settings = ValkeySettings(
        valkey_host=valkey.host,
        valkey_port=valkey.port,
        valkey_user="ratelimit",
        valkey_password_file=valkey.password_files["ratelimit"],
    )
    async with open_valkey(settings) as client:
        yield client


class NothingIsKnown:
    """The durable counts while their database is away."""

    async def floors(self, wanted: Sequence[DeploymentId], month: str) -> list[int]:
        raise UnavailableError("the durable counts are away")


@pytest.mark.promise("P-05")
async def test_what_is_lost_counts_from_what_is_known_and_is_not_asked_for_again(
    client: Valkey,
) -> None:
    deployment = new_deployment_id()
    floors = KnownMonths({(deployment, "2026-11"): 95})
    store = CounterStore(client, floors, PATIENCE_SECONDS)
    readings = await store.take([Take(deployment, LIMITS, 2)] * 4, NOW_US)
    assert [reading.used for reading in readings] == [97, 99, 99, 99]
    assert readings[-1].decision is Decision.QUOTA_EXCEEDED
    assert (await store.take([Take(deployment, LIMITS, 1)], NOW_US))[0].used == 100
    assert floors.asked == [((deployment,), "2026-11")]
    await client.delete(month_key(deployment, "2026-11"))
    floors.counts[deployment, "2026-11"] = 100
    (lost,) = await store.take([Take(deployment, LIMITS, 1)], NOW_US)
    assert lost.decision is Decision.QUOTA_EXCEEDED


async def test_all_that_a_batch_does_not_know_is_asked_for_at_once(client: Valkey) -> None:
    floors = KnownMonths()
    store = CounterStore(client, floors, PATIENCE_SECONDS)
    known, *unknown = [new_deployment_id() for _ in range(50)]
    await store.take([Take(known, LIMITS, 1)], NOW_US)
    floors.counts = {(each, "2026-11"): 10 for each in unknown}
    takes = [Take(each, LIMITS, 1) for each in (known, *unknown)] * 3
    readings = await store.take(takes, NOW_US)
    assert [reading.used for reading in readings[-50:]] == [4, *[13] * 49]
    assert floors.asked[1:] == [(tuple(sorted(unknown)), "2026-11")]


async def test_a_look_and_a_lease_count_from_it_as_well(client: Valkey) -> None:
    looked, leased = new_deployment_id(), new_deployment_id()
    floors = KnownMonths({(looked, "2026-11"): 40, (leased, "2026-11"): 95})
    store = CounterStore(client, floors, PATIENCE_SECONDS)
    assert (await store.take([Take(looked, LIMITS, 0)], NOW_US))[0].used == 40
    (grant,) = await store.lease([Want(leased, LIMITS, 50, new_token())], NOW_US)
    assert (grant.calls, grant.reading.used) == (5, 100)


@pytest.mark.promise("P-05")
async def test_replicas_that_find_nothing_at_the_same_moment_lose_no_call(client: Valkey) -> None:
    deployment = new_deployment_id()
    stores = [
        CounterStore(client, KnownMonths({(deployment, "2026-11"): 50}), PATIENCE_SECONDS)
        for _ in range(20)
    ]
    await asyncio.gather(
        *(store.take([Take(deployment, LIMITS, 1)] * 2, NOW_US) for store in stores)
    )
    (look,) = await stores[0].take([Take(deployment, LIMITS, 0)], NOW_US)
    assert look.used == 90


async def test_each_month_is_asked_for_by_its_own_name(client: Valkey) -> None:
    deployment, floors = new_deployment_id(), KnownMonths()
    store = CounterStore(client, floors, PATIENCE_SECONDS)
    for now in (DECEMBER_US - 1, DECEMBER_US):
        assert (await store.take([Take(deployment, LIMITS, 1)], now))[0].used == 1
    assert [month for _, month in floors.asked] == ["2026-11", "2026-12"]


async def test_under_the_servers_clock_the_month_is_that_of_its_time(client: Valkey) -> None:
    store = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
    (reading,) = await store.take([Take(new_deployment_id(), LIMITS, 1)])
    assert reading.month.holds(reading.at_us)


@pytest.mark.promise("P-05")
async def test_while_it_cannot_be_found_out_nothing_is_admitted(client: Valkey) -> None:
    deployment = new_deployment_id()
    closed = CounterStore(client, NothingIsKnown(), PATIENCE_SECONDS)
    (reading,) = await closed.take([Take(deployment, LIMITS, 1)], NOW_US)
    assert reading.decision is Decision.UNAVAILABLE
    (grant,) = await closed.lease([Want(deployment, LIMITS, 5, new_token())], NOW_US)
    assert (grant.calls, grant.reading.decision) == (0, Decision.UNAVAILABLE)
    assert await client.exists(month_key(deployment, "2026-11")) == 0
    known = CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
    assert (await known.take([Take(deployment, LIMITS, 1)], NOW_US))[0].used == 1
    assert (await closed.take([Take(deployment, LIMITS, 1)], NOW_US))[0].used == 2


async def test_two_plans_of_one_deployment_in_a_batch_are_one_counter(client: Valkey) -> None:
    """Two keys of it may be remembered with different plans for a moment: the last one counts."""
    deployment, store = new_deployment_id(), CounterStore(client, KnownMonths(), PATIENCE_SECONDS)
    bigger = Limits(Ceiling(1_000, 1_000), 500)
    takes = [Take(deployment, LIMITS, 60), Take(deployment, bigger, 60)]
    readings = await store.take(takes, NOW_US)
    assert [reading.used for reading in readings] == [60, 120]
