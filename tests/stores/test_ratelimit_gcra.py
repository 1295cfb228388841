"""The pure rules of the limiter, against slower models that say the same another way."""

from calendar import monthrange
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ratelimit.domain import Counters, Decision, Limits, Take, decide
from services.ratelimit.gcra import MICROSECONDS, Ceiling
from services.ratelimit.months import microseconds, moment, month_at, month_of, next_month
from services.shared.ids import DeploymentId

START_US = microseconds(datetime(2026, 11, 22, 12, tzinfo=UTC))
DEPLOYMENT = DeploymentId("dep_1")

plans = st.tuples(
    st.builds(Ceiling, st.integers(1, 5_000), st.integers(1, 50)),
    st.one_of(st.none(), st.integers(1, 200)),
)
ceilings = st.builds(Ceiling, st.integers(1, 5_000), st.integers(1, 50))
steps = st.lists(
    st.tuples(st.integers(0, 3 * MICROSECONDS), st.integers(0, 60)), min_size=1, max_size=60
)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 hypothesis wants naive bounds


@dataclass
class LeakyBucket:
    """The same algorithm as a meter (ITU-T I.371): a level in calls, drained exactly."""

    ceiling: Ceiling
    level: Fraction = Fraction(0)

    def take(self, elapsed_us: int, cost: int) -> bool:
        self.level = max(Fraction(0), self.level - Fraction(elapsed_us, self.ceiling.interval_us))
        fits = self.level + cost <= self.ceiling.burst
        if fits:
            self.level += cost
        return fits


@settings(deadline=None)
@given(ceilings, steps)
def test_it_admits_what_an_exact_leaky_bucket_admits(
    ceiling: Ceiling, steps: list[tuple[int, int]]
) -> None:
    model, counters, now = LeakyBucket(ceiling), Counters(), START_US
    for elapsed, cost in steps:
        now += elapsed
        counters, reading = decide(counters, Take(DEPLOYMENT, Limits(ceiling, None), cost), now)
        assert (reading.decision is Decision.ALLOWED) == (model.take(elapsed, cost) or cost == 0)
        assert reading.burst_remaining == (ceiling.burst - model.level).__floor__()


@dataclass
class Subscription:
    """The whole limiter in exact arithmetic: a bucket that drains, and a page per month."""

    bucket: LeakyBucket
    month: tuple[int, int] = (0, 0)
    used: int = 0

    def take(
        self, at: datetime, elapsed_us: int, cost: int, plan: tuple[Ceiling, int | None]
    ) -> bool:
        ceiling, monthly = plan
        if (at.year, at.month) != self.month:
            self.month, self.used = (at.year, at.month), 0
        self._wait(elapsed_us, ceiling)
        fits = self.bucket.level + cost <= ceiling.burst and (
            monthly is None or self.used + cost <= monthly
        )
        if fits:
            self.bucket.level += cost
            self.used += cost
        return fits

    def _wait(self, elapsed_us: int, ceiling: Ceiling) -> None:
        before = self.bucket.ceiling
        drained = self.bucket.level - Fraction(elapsed_us, before.interval_us)
        level = max(Fraction(0), drained)
        if before.interval_us != ceiling.interval_us:
            # A call that is half worked off counts as whole at another rate.
            level = Fraction(level.__ceil__())
        self.bucket = LeakyBucket(ceiling, min(level, Fraction(ceiling.burst)))


long_steps = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 3 * MICROSECONDS), st.integers(0, 40 * 86_400 * MICROSECONDS)),
        st.integers(1, 60),
        plans,
    ),
    min_size=1,
    max_size=40,
)


@settings(deadline=None)
@given(moments, long_steps)
def test_plans_that_change_count_at_once_in_bursts_and_calendar_months(
    start: datetime, steps: list[tuple[int, int, tuple[Ceiling, int | None]]]
) -> None:
    now, counters = start, Counters()
    model, month = Subscription(LeakyBucket(steps[0][2][0])), ""
    elapsed_since_taken = 0
    for elapsed, cost, (ceiling, monthly) in steps:
        now += timedelta(microseconds=elapsed)
        if f"{now:%Y-%m}" != month:
            month, counters = f"{now:%Y-%m}", Counters(counters.bucket, 0)
        take = Take(DEPLOYMENT, Limits(ceiling, monthly), cost)
        counters, reading = decide(counters, take, microseconds(now))
        trial = replace(model, bucket=replace(model.bucket))
        admitted = trial.take(now, elapsed_since_taken + elapsed, cost, (ceiling, monthly))
        assert (reading.decision is Decision.ALLOWED) == admitted
        assert reading.used == trial.used
        # What is refused changes nothing, the rate that the bucket is kept at included.
        elapsed_since_taken = 0 if admitted else elapsed_since_taken + elapsed
        model = trial if admitted else model


@settings(deadline=None)
@given(ceilings, steps)
def test_no_window_ever_holds_more_than_burst_and_rate(
    ceiling: Ceiling, steps: list[tuple[int, int]]
) -> None:
    counters, now, admitted = Counters(), START_US, []
    for elapsed, cost in steps:
        now += elapsed
        before = counters.used
        counters, _ = decide(counters, Take(DEPLOYMENT, Limits(ceiling, None), cost), now)
        admitted.append((now, counters.used - before))
    for first in range(len(admitted)):
        totals = accumulate(cost for _, cost in admitted[first:])
        for (at, _), total in zip(admitted[first:], totals, strict=True):
            window = Fraction(at - admitted[first][0], MICROSECONDS)
            assert total <= ceiling.burst + ceiling.rate_per_second * window


@settings(deadline=None)
@given(ceilings, steps, st.one_of(st.none(), st.integers(1, 100)), st.integers(1, 60))
def test_after_waiting_as_told_the_same_call_is_admitted_and_not_a_microsecond_before(
    ceiling: Ceiling, steps: list[tuple[int, int]], monthly: int | None, cost: int
) -> None:
    limits, counters, now = Limits(ceiling, monthly), Counters(), START_US
    for elapsed, taken in steps:
        now += elapsed
        counters, _ = decide(counters, Take(DEPLOYMENT, limits, taken), now)
    _, refused = decide(counters, Take(DEPLOYMENT, limits, cost), now)
    if refused.decision is Decision.ALLOWED:
        assert refused.retry_after is None
        return
    never = cost > ceiling.burst or (monthly is not None and cost > monthly)
    assert (refused.retry_after is None) == never
    if refused.retry_after is None:
        return
    then = refused.at + refused.retry_after
    assert _decision_at(counters, limits, cost, then) is Decision.ALLOWED
    just_before = then - timedelta(microseconds=1)
    assert _decision_at(counters, limits, cost, just_before) is not Decision.ALLOWED


def _decision_at(counters: Counters, limits: Limits, cost: int, at: datetime) -> Decision:
    used = counters.used if month_of(at) == month_of(moment(START_US)) else 0
    later = Counters(counters.bucket, used)
    return decide(later, Take(DEPLOYMENT, limits, cost), microseconds(at))[1].decision


@settings(deadline=None)
@given(ceilings, steps)
def test_what_is_refused_changes_nothing(ceiling: Ceiling, steps: list[tuple[int, int]]) -> None:
    counters, now = Counters(), START_US
    for elapsed, cost in steps:
        now += elapsed
        after, reading = decide(counters, Take(DEPLOYMENT, Limits(ceiling, 100), cost), now)
        assert (after == counters) == (reading.decision is not Decision.ALLOWED or cost == 0)
        counters = after


def test_a_raised_plan_counts_at_once() -> None:
    slow, fast = Limits(Ceiling(1, 5), 5), Limits(Ceiling(100, 200), None)
    counters, _ = decide(Counters(), Take(DEPLOYMENT, slow, 5), START_US)
    _, refused = decide(counters, Take(DEPLOYMENT, slow, 1), START_US)
    assert refused.decision is Decision.QUOTA_EXCEEDED
    _, raised = decide(counters, Take(DEPLOYMENT, fast, 195), START_US)
    assert raised.decision is Decision.ALLOWED
    assert (raised.used, raised.burst_remaining) == (200, 0)


def test_a_lowered_plan_counts_at_once() -> None:
    fast, slow = Limits(Ceiling(100, 200), None), Limits(Ceiling(1, 5), 100)
    counters, _ = decide(Counters(), Take(DEPLOYMENT, fast, 100), START_US)
    _, refused = decide(counters, Take(DEPLOYMENT, slow, 1), START_US)
    assert refused.decision is Decision.QUOTA_EXCEEDED
    slow = Limits(Ceiling(1, 5), 101)
    _, refused = decide(counters, Take(DEPLOYMENT, slow, 1), START_US)
    # No backlog is longer than the burst: what the old plan admitted is not held against it.
    assert (refused.decision, refused.retry_after) == (
        Decision.BURST_EXCEEDED,
        timedelta(seconds=1),
    )


def test_a_clock_that_was_set_back_locks_nobody_out() -> None:
    limits = Limits(Ceiling(10, 20), None)
    counters, _ = decide(Counters(), Take(DEPLOYMENT, limits, 20), START_US)
    _, refused = decide(counters, Take(DEPLOYMENT, limits, 1), START_US - 3_600 * MICROSECONDS)
    assert refused.retry_after == timedelta(milliseconds=100)


def test_the_longer_of_the_two_waits_is_told() -> None:
    limits = Limits(Ceiling(1, 10), 10)
    end_of_month = microseconds(datetime(2026, 12, 1, tzinfo=UTC)) - MICROSECONDS
    counters, _ = decide(Counters(), Take(DEPLOYMENT, limits, 10), end_of_month)
    _, refused = decide(counters, Take(DEPLOYMENT, limits, 5), end_of_month)
    assert refused.decision is Decision.QUOTA_EXCEEDED
    assert refused.retry_after == timedelta(seconds=5)


@settings(deadline=None)
@given(moments)
def test_a_moment_lies_in_its_month_and_the_next_begins_after_it(at: datetime) -> None:
    following = next_month(at)
    assert at < following <= at + timedelta(days=31)
    assert month_of(following - timedelta(microseconds=1)) == month_of(at)
    assert month_of(following) != month_of(at)
    assert (following.day, following.time()) == (1, datetime.min.time())


@settings(deadline=None)
@given(moments)
def test_a_month_lasts_as_long_as_the_calendar_says(at: datetime) -> None:
    month = month_at(microseconds(at))
    days = monthrange(at.year, at.month)[1]
    assert month.name == f"{at.year:04}-{at.month:02}"
    assert month.ends_us - month.begins_us == days * 86_400 * MICROSECONDS
    assert month.holds(microseconds(at))
    assert month.holds(month.begins_us)
    assert not month.holds(month.ends_us)
    assert month_at(month.ends_us).begins_us == month.ends_us


@settings(deadline=None)
@given(moments)
def test_microseconds_and_moments_are_one_to_one(at: datetime) -> None:
    assert moment(microseconds(at)) == at


@pytest.mark.parametrize(
    ("at", "month", "following"),
    [
        ("2026-11-30T23:59:59.999999+00:00", "2026-11", "2026-12-01T00:00:00+00:00"),
        ("2026-12-31T23:59:59+00:00", "2026-12", "2027-01-01T00:00:00+00:00"),
        ("2028-02-29T12:00:00+00:00", "2028-02", "2028-03-01T00:00:00+00:00"),
        ("2026-12-01T00:30:00+01:00", "2026-11", "2026-12-01T00:00:00+00:00"),
    ],
)
def test_months_are_those_of_utc(at: str, month: str, following: str) -> None:
    assert month_of(datetime.fromisoformat(at)) == month
    assert next_month(datetime.fromisoformat(at)) == datetime.fromisoformat(following)
