"""The rules of life without Valkey, by themselves: shares, totals, and how many share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ratelimit.domain import Counters, Decision, Limits, Reading, Take, decide
from services.ratelimit.gcra import MICROSECONDS, Ceiling
from services.ratelimit.ledger import Ledger, OwnUse, Replayed, Start
from services.ratelimit.months import month_at, month_named, months_before
from services.ratelimit.outage import Outage
from services.ratelimit.replicas import Replicas
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, TenantId

DEPLOYMENT = DeploymentId("dep_0")
TENANT = TenantId("ten_0")
NOW_US = month_named("2026-11").begins_us + 20 * 86_400 * MICROSECONDS
LIMITS = Limits(Ceiling(10, 20), 1_000)
NOTHING = Start(0, 0)

ceilings = st.builds(Ceiling, st.integers(1, 1_000), st.integers(1, 300))
# Who is asked, how long after the one before, and for how many calls.
traffic = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 2 * MICROSECONDS), st.integers(0, 30)), max_size=80
)


class Nobody:
    """No beats: the number of replicas is told by the test."""

    async def beat(self, replica_id: str, dead_after_seconds: float) -> int:
        raise UnavailableError("not in this test")


def take(cost: int, limits: Limits = LIMITS) -> Take:
    return Take(DEPLOYMENT, limits, cost, TENANT)


def outage(own: OwnUse, began_us: int = NOW_US, ledger: Ledger | None = None) -> Outage:
    """Returns the outage of one of several; of one that was alone with a ledger."""
    alone_since = None if ledger is None else began_us
    return Outage(own, ledger or Ledger(), began_us, alone_since)


def begin(out: Outage, first: Take, start: Start = NOTHING, now_us: int = NOW_US) -> None:
    assert out.unknown([first], now_us) == [first.deployment_id]
    out.learn({first.deployment_id: start}, [first], out.month)


def admitted(reading: Reading, cost: int) -> int:
    return cost if reading.decision is Decision.ALLOWED else 0


@pytest.mark.promise("P-05")
@given(ceiling=ceilings, replicas=st.integers(1, 5), monthly=st.integers(1, 400), traffic=traffic)
def test_replicas_without_valkey_admit_in_sum_no_more_than_the_limit(
    ceiling: Ceiling, replicas: int, monthly: int, traffic: list[tuple[int, int, int]]
) -> None:
    limits = Limits(ceiling, monthly)
    outages = [outage(OwnUse(str(number))) for number in range(replicas)]
    for each in outages:
        begin(each, take(1, limits), Start(3, 4))
    now, admissions = NOW_US, []
    for number, gap, cost in traffic:
        now += gap
        (reading,) = outages[number % replicas].decide([take(cost, limits)], replicas, now)
        admissions.append((now, admitted(reading, cost)))
    assert 7 + sum(calls for _, calls in admissions) <= max(monthly, 7)
    # Of any stretch of time: no more than the burst and what the rate brings meanwhile.
    for first, (begins, _) in enumerate(admissions):
        for last in range(first, len(admissions)):
            calls = sum(calls for _, calls in admissions[first : last + 1])
            stretch = admissions[last][0] - begins
            assert (calls - ceiling.burst) * ceiling.interval_us <= stretch


@pytest.mark.promise("P-05")
@given(
    replicas=st.integers(2, 4),
    losses=st.lists(st.integers(0, 3 * MICROSECONDS), min_size=1, max_size=6),
)
def test_a_valkey_that_comes_and_goes_never_gives_a_burst_anew(
    replicas: int, losses: list[int]
) -> None:
    now, calls = NOW_US, 0
    for stays in losses:
        # Each time Valkey was lost right after it had admitted nothing: the replicas begin anew.
        outages = [outage(OwnUse(str(number)), now) for number in range(replicas)]
        for each in outages:
            begin(each, take(1), now_us=now)
        now += stays
        for each in outages:
            readings = each.decide([take(1)] * 50, replicas, now)
            calls += sum(admitted(reading, 1) for reading in readings)
    assert calls * LIMITS.ceiling.interval_us <= now - NOW_US


@pytest.mark.promise("P-05")
@given(before=st.integers(0, 20), idle=st.integers(0, 3 * MICROSECONDS), wanted=st.integers(0, 40))
def test_one_that_was_alone_goes_on_where_valkey_was(before: int, idle: int, wanted: int) -> None:
    counters, reading = decide(Counters(), take(before), NOW_US)
    ledger = Ledger()
    ledger.note(DEPLOYMENT, TENANT, reading, NOW_US)
    out = outage(OwnUse("0"), NOW_US, ledger)
    later = NOW_US + idle
    begin(out, take(1), Start(before, 0), later)
    for here in out.decide([take(1)] * wanted, 1, later):
        counters, there = decide(counters, take(1), later)
        assert here == there


def test_one_that_was_alone_and_remembers_nothing_begins_without_room() -> None:
    out = outage(OwnUse("0"), NOW_US, Ledger())
    begin(out, take(1))
    (refused,) = out.decide([take(1)], 1, NOW_US)
    assert (refused.decision, refused.wait_us) == (Decision.BURST_EXCEEDED, 100_000)
    (allowed,) = out.decide([take(1)], 1, NOW_US + 100_000)
    assert (allowed.decision, allowed.used) == (Decision.ALLOWED, 1)


def test_what_the_month_counts_from_must_be_known() -> None:
    own = OwnUse("0")
    out = outage(own)
    other = take(1)._replace(deployment_id=DeploymentId("dep_1"))
    begin(out, take(1), now_us=NOW_US)
    known, unknown = out.decide([take(1), other], 2, NOW_US + MICROSECONDS)
    assert known.decision is Decision.ALLOWED
    assert (unknown.decision, unknown.wait_us) == (Decision.UNAVAILABLE, MICROSECONDS)
    assert [use.deployment_id for use in own.to_replay()] == [DEPLOYMENT]


def test_a_new_month_is_asked_for_anew_and_adds_no_burst() -> None:
    own = OwnUse("0")
    ends = month_at(NOW_US).ends_us
    out = outage(own, ends - 10 * MICROSECONDS)
    begin(out, take(1), Start(990, 0), ends - 10 * MICROSECONDS)
    readings = out.decide([take(1)] * 12, 1, ends - 1)
    assert sum(admitted(reading, 1) for reading in readings) == 10
    (unknown,) = out.decide([take(1)], 1, ends)
    assert unknown.decision is Decision.UNAVAILABLE
    assert out.month == "2026-12"
    out.learn({DEPLOYMENT: Start(0, 0)}, [take(1)], "2026-12")
    (reading,) = out.decide([take(1)], 1, ends)
    assert reading.decision is Decision.BURST_EXCEEDED
    assert [use.month for use in own.to_replay()] == ["2026-11"]


@given(st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["save", "replay", "settle", ""]))))
def test_totals_only_grow_and_nothing_is_lost_on_the_way(steps: list[tuple[int, str]]) -> None:
    own, total, valkey, durable = OwnUse("0"), 0, 0, 0
    for calls, step in steps:
        own.add(take(calls), "2026-11", 0)
        total += calls
        if step == "save":
            own.saved(own.unsaved())
            assert own.unsaved() == []
        if step == "replay":
            own.replayed(Replayed(use, use.used) for use in own.to_replay())
            valkey = total
        if step == "settle":
            own.settled(own.to_settle())
            durable = valkey
        assert own.pending(DEPLOYMENT, "2026-11") == total - valkey
        assert [use.used for use in own.to_replay()] == ([total] if total > valkey else [])
        assert [done.use.used for done in own.to_settle()] == ([valkey] if valkey > durable else [])


def test_the_ledger_keeps_the_highest_and_forgets_only_what_is_saved() -> None:
    ledger = Ledger()
    _, reading = decide(Counters(used=5), take(3), NOW_US)
    for used in (8, 6, 8):
        ledger.note(DEPLOYMENT, TENANT, reading._replace(used=used), NOW_US)
    (unsaved,) = ledger.unsaved()
    assert unsaved == (DEPLOYMENT, "2026-11", TENANT, 8)
    ledger.forget(NOW_US + 1)
    assert ledger.highest(DEPLOYMENT, "2026-11") == 8
    ledger.note(DEPLOYMENT, TENANT, reading._replace(used=9), NOW_US)
    ledger.saved([unsaved])
    assert [counted.used for counted in ledger.unsaved()] == [9]
    ledger.saved(ledger.unsaved())
    ledger.forget(NOW_US + 1)
    assert ledger.highest(DEPLOYMENT, "2026-11") is None


def test_the_most_that_were_seen_in_the_last_minutes_share_a_limit() -> None:
    replicas = Replicas(Nobody(), "0", remembered_seconds=120)
    with pytest.raises(UnavailableError):
        replicas.number(0)
    replicas.note(3, 0)
    with pytest.raises(UnavailableError):
        replicas.number(1.9)
    assert replicas.number(2) == 3
    replicas.note(1, 60)
    assert replicas.number(120) == 3
    assert replicas.number(121) == 1
    # With Postgres away the last number holds, however long.
    assert replicas.number(10_000) == 1


@pytest.mark.parametrize(
    ("name", "before", "expected"),
    [("2026-11", 12, "2025-11"), ("2026-01", 1, "2025-12"), ("2026-12", 12, "2025-12")],
)
def test_months_are_counted_back(name: str, before: int, expected: str) -> None:
    assert months_before(name, before) == expected
    assert month_named(name).name == name
