"""Fixed windows: the calendar, the rule, and the script that carries it out on a real Valkey."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import redis.asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from deploy.local.valkey import ValkeyServer
from services.ratelimit.months import microseconds, moment
from services.ratelimit.window_store import WindowStore, keys_of
from services.ratelimit.windows import MOST_COUNTED, Counted, Mode, Unit, decide, window_at
from services.shared.redis import Valkey, open_valkey
from services.shared.settings import ValkeySettings

NOW_US = microseconds(datetime(2026, 11, 22, 12, tzinfo=UTC))
HOUR_US = 3_600_000_000
moments = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 hypothesis wants naive bounds
wanted = st.builds(
    Counted,
    st.sampled_from(("one", "two", "three")),
    st.sampled_from((Unit.HOUR, Unit.MONTH)),
    st.just(1),
    st.integers(0, 12),
    st.integers(-3, 6),
    st.sampled_from(Mode),
)
requests = st.lists(st.lists(wanted, min_size=1, max_size=5), min_size=1, max_size=12)


@pytest.fixture(scope="module")
async def client(valkey: ValkeyServer) -> AsyncIterator[Valkey]:
    own = ValkeySettings(
        valkey_host=valkey.host,
        valkey_port=valkey.port,
        valkey_user="ratelimit",
        valkey_password_file=valkey.password_files["ratelimit"],
    )
    async with open_valkey(own) as client:
        yield client


@pytest.fixture(scope="module")
def store(client: Valkey) -> WindowStore:
    # Patient: what is slow here is the machine.
    return WindowStore(client, 30.0)


def hit(counter: str, limit: int, hits: int = 1, unit: Unit = Unit.YEAR) -> Counted:
    return Counted(counter, unit, 1, limit, hits, Mode.ENFORCED)


@pytest.mark.parametrize(
    ("unit", "multiplier", "begins", "ends"),
    [
        (Unit.SECOND, 1, "2026-11-22T12:34:56", "2026-11-22T12:34:57"),
        (Unit.MINUTE, 1, "2026-11-22T12:34:00", "2026-11-22T12:35:00"),
        (Unit.HOUR, 1, "2026-11-22T12:00:00", "2026-11-22T13:00:00"),
        (Unit.DAY, 1, "2026-11-22T00:00:00", "2026-11-23T00:00:00"),
        # A Sunday: the week began on Monday.
        (Unit.WEEK, 1, "2026-11-16T00:00:00", "2026-11-23T00:00:00"),
        (Unit.MONTH, 1, "2026-11-01T00:00:00", "2026-12-01T00:00:00"),
        (Unit.YEAR, 1, "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
        (Unit.MINUTE, 15, "2026-11-22T12:30:00", "2026-11-22T12:45:00"),
        (Unit.MONTH, 3, "2026-10-01T00:00:00", "2027-01-01T00:00:00"),
        (Unit.YEAR, 10, "2020-01-01T00:00:00", "2030-01-01T00:00:00"),
    ],
)
def test_windows_are_those_of_the_utc_calendar(
    unit: Unit, multiplier: int, begins: str, ends: str
) -> None:
    now = microseconds(datetime(2026, 11, 22, 12, 34, 56, 789_012, tzinfo=UTC))
    window = window_at(unit, multiplier, now)
    assert moment(window.begins_us).isoformat() == f"{begins}+00:00"
    assert moment(window.ends_us).isoformat() == f"{ends}+00:00"


@given(moments, st.sampled_from(Unit), st.integers(1, 1_000))
def test_windows_follow_one_another_without_a_gap(at: datetime, unit: Unit, several: int) -> None:
    now = microseconds(at)
    window = window_at(unit, several, now)
    assert window.begins_us <= now < window.ends_us
    assert window_at(unit, several, window.begins_us) == window
    assert window_at(unit, several, window.ends_us).begins_us == window.ends_us


@given(moments, st.sampled_from(Unit))
def test_a_window_is_what_a_calendar_says(at: datetime, unit: Unit) -> None:
    window = window_at(unit, 1, microseconds(at))
    iso = at.isocalendar()
    begins = {
        Unit.SECOND: at.replace(microsecond=0),
        Unit.MINUTE: at.replace(second=0, microsecond=0),
        Unit.HOUR: at.replace(minute=0, second=0, microsecond=0),
        Unit.DAY: datetime(at.year, at.month, at.day, tzinfo=UTC),
        Unit.WEEK: datetime.fromisocalendar(iso.year, iso.week, 1).replace(tzinfo=UTC),
        Unit.MONTH: datetime(at.year, at.month, 1, tzinfo=UTC),
        Unit.YEAR: datetime(at.year, 1, 1, tzinfo=UTC),
    }[unit]
    assert moment(window.begins_us) == begins


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(journey=requests)
async def test_the_script_decides_as_the_rule_does(
    store: WindowStore, journey: list[list[Counted]]
) -> None:
    domain, counts = uuid.uuid4().hex, dict[str, int]()
    for request in journey:
        # One counter per window, as descriptors make them: the unit is in its name.
        named = [_named(each) for each in request]
        outcomes = await store.count(domain, named, NOW_US)
        counts, expected = decide(counts, named, NOW_US)
        assert outcomes == expected


def _named(each: Counted) -> Counted:
    name = f"{each.unit}:{each.counter}"
    return Counted(name, each.unit, each.multiplier, each.limit, each.hits, each.mode)


@given(requests)
def test_no_count_goes_beyond_a_limit_that_is_enforced(journey: list[list[Counted]]) -> None:
    counts: dict[str, int] = {}
    for request in journey:
        limited = [hit(each.counter, 7, each.hits) for each in request]
        before = counts
        counts, outcomes = decide(counts, limited, NOW_US)
        assert all(0 <= count <= 7 for count in counts.values())
        if any(outcome.over for outcome in outcomes):
            assert {k: v for k, v in counts.items() if v} == {k: v for k, v in before.items() if v}


async def test_a_new_window_begins_from_nothing(store: WindowStore) -> None:
    domain = uuid.uuid4().hex
    wanted = [hit("a", 1, unit=Unit.HOUR)]
    for _ in range(2):
        outcomes = await store.count(domain, wanted, NOW_US)
    assert outcomes[0].over
    last_us = NOW_US + HOUR_US - 1
    (late,) = await store.count(domain, wanted, last_us)
    assert (late.over, late.resets_us) == (True, 1)
    (next_one,) = await store.count(domain, wanted, NOW_US + HOUR_US)
    assert (next_one.over, next_one.left, next_one.resets_us) == (False, 0, HOUR_US)


async def test_the_end_of_a_month_is_exact(store: WindowStore) -> None:
    domain, wanted = uuid.uuid4().hex, [hit("a", 1, unit=Unit.MONTH)]
    february = microseconds(datetime(2028, 2, 1, tzinfo=UTC))
    (first,) = await store.count(domain, wanted, february)
    assert timedelta(microseconds=first.resets_us) == timedelta(days=29)
    (late,) = await store.count(domain, wanted, february + first.resets_us - 1)
    assert late.over
    (march,) = await store.count(domain, wanted, february + first.resets_us)
    assert not march.over


async def test_clients_at_once_are_never_admitted_beyond_the_limit(client: Valkey) -> None:
    domain, limit = uuid.uuid4().hex, 100
    replicas = [WindowStore(client, 30.0) for _ in range(3)]
    asked = [hit("a", limit), hit("b", 10_000)]
    answers = await asyncio.gather(
        *(replicas[number % 3].count(domain, asked) for number in range(400))
    )
    assert sum(not over.over for over, _ in answers) == limit
    (other,) = await replicas[0].count(domain, [hit("b", 10_000, 0)])
    # Whoever was refused burnt nothing of the other limit either.
    assert other.left == 10_000 - limit


async def test_all_counters_of_a_domain_lie_in_one_slot(
    client: redis.asyncio.Redis, store: WindowStore
) -> None:
    domain, slots = f"}}{{{uuid.uuid4().hex}", set()
    wanted = [hit(f"counter {number}", 9, unit=Unit.HOUR) for number in range(5)]
    await store.count(domain, wanted, NOW_US)
    for each in wanted:
        window = window_at(each.unit, each.multiplier, NOW_US)
        (name,) = keys_of(domain, [each], [window])
        assert name.startswith("limit:{rls:")
        assert await client.get(name) is not None
        assert 0 < await client.pttl(name) <= HOUR_US // 1_000
        slots.add(key_slot(name.encode()))
    assert len(slots) == 1


async def test_a_clock_of_ours_that_is_wrong_changes_nothing(client: Valkey) -> None:
    store, domain = WindowStore(client, 30.0), uuid.uuid4().hex
    store._ahead_us = -400 * 86_400_000_000  # noqa: SLF001 as if this machine's clock were ahead
    wanted = [hit("a", 1)]
    first, second = [(await store.count(domain, wanted))[0] for _ in range(2)]
    assert [first.over, second.over] == [False, True]


async def test_a_count_never_outgrows_its_numbers(store: WindowStore) -> None:
    domain, many = uuid.uuid4().hex, 2**52
    shadow = [Counted("a", Unit.YEAR, 1, 1, many, Mode.SHADOW)]
    for _ in range(4):
        (outcome,) = await store.count(domain, shadow, NOW_US)
        assert (outcome.over, outcome.left) == (True, 0)
    _, (expected,) = decide({"a": MOST_COUNTED}, shadow, NOW_US)
    assert outcome == expected


async def test_the_script_is_taught_again_to_a_server_that_forgot_it(
    client: redis.asyncio.Redis, valkey: ValkeyServer
) -> None:
    store = WindowStore(client, 30.0)
    # A digest that no server knows is what a server that was restarted answers to.
    store._digest = "0" * 40  # noqa: SLF001 the state after a restart
    (outcome,) = await store.count(uuid.uuid4().hex, [hit("a", 1)])
    assert not outcome.over
