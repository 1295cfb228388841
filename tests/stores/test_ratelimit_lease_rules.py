"""The pure rules of leases, against what they promise: never more, and giving back undoes."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.ratelimit.domain import Counters, Decision, Limits, Take, decide
from services.ratelimit.gcra import HELD_US, LEASE_US, MICROSECONDS, Ceiling, present
from services.ratelimit.leases import (
    MAX_LEASES,
    Grant,
    LeaseId,
    Named,
    Want,
    give_back,
    lease,
    lease_id,
    named,
    new_token,
)
from services.ratelimit.months import microseconds
from services.shared.ids import DeploymentId, new_deployment_id

START_US = microseconds(datetime(2026, 11, 22, 12, tzinfo=UTC))
DEPLOYMENT = DeploymentId("dep_1")

ceilings = st.builds(Ceiling, st.integers(1, 2_000), st.integers(1, 50))
gaps = st.integers(0, LEASE_US // 2)
# What one step does: which of three, how many calls, and where within a lease they are used.
steps = st.lists(
    st.tuples(
        gaps, st.sampled_from(("take", "lease", "back")), st.integers(1, 30), st.floats(0, 1)
    ),
    min_size=1,
    max_size=40,
)


@dataclass
class Holder:
    """A deployment's counters, and every call that was made, with its moment."""

    limits: Limits
    counters: Counters = field(default_factory=Counters)
    calls: list[tuple[int, int]] = field(default_factory=list)
    out: list[tuple[str, int, int]] = field(default_factory=list)
    granted: int = 0

    def take(self, cost: int, now: int) -> bool:
        self.counters, reading = decide(self.counters, Take(DEPLOYMENT, self.limits, cost), now)
        if reading.decision is Decision.ALLOWED:
            self.calls.append((now, cost))
        return reading.decision is Decision.ALLOWED

    def lease(self, calls: int, now: int) -> None:
        token = str(len(self.calls) + len(self.out) + self.granted)
        self.counters, grant = lease(
            self.counters, Want(DEPLOYMENT, self.limits, calls, token), now
        )
        if grant.calls:
            self.granted += 1
            self.out.append((f"{grant.reading.month.name}.{token}", now, grant.calls))

    def back(self, unused: int, now: int, where: float) -> None:
        """Uses all but `unused` calls of the oldest lease at some moment of its life."""
        token, since, granted = self.out.pop(0)
        used = granted - min(unused, granted)
        ended = min(now, since + LEASE_US)
        self.calls.append((since + int((ended - since) * where), used))
        self.counters, _ = give_back(self.counters, token, granted - used, now)

    def step(self, now: int, what: str, calls: int, where: float) -> None:
        if what == "take":
            self.take(calls, now)
        elif what == "lease":
            self.lease(calls, now)
        elif self.out:
            self.back(calls, now, where)


def _most_in_a_window(calls: list[tuple[int, int]], interval: int) -> int:
    """Returns the most that a window held beyond what the rate gives, in microseconds of calls."""
    ordered = sorted(calls)
    most = 0
    for first, (since, _) in enumerate(ordered):
        total = 0
        for at, cost in ordered[first:]:
            total += cost
            most = max(most, total * interval - (at - since))
    return most


@settings(deadline=None)
@given(ceilings, steps)
def test_takes_and_leases_together_never_exceed_burst_and_rate_at_the_moments_of_use(
    ceiling: Ceiling, steps: list[tuple[int, str, int, float]]
) -> None:
    holder, now = Holder(Limits(ceiling, None)), START_US
    for gap, what, calls, where in steps:
        now += gap
        holder.step(now, what, calls, where)
    # A holder that dies has used all of what it held, at the last moment.
    for _, since, granted in holder.out:
        holder.calls.append((since + LEASE_US, granted))
    assert _most_in_a_window(holder.calls, ceiling.interval_us) <= ceiling.tolerance_us


@settings(deadline=None)
@given(ceilings, steps, st.integers(1, 200))
def test_takes_and_leases_together_never_exceed_the_month(
    ceiling: Ceiling, steps: list[tuple[int, str, int, float]], monthly: int
) -> None:
    holder, now = Holder(Limits(ceiling, monthly)), START_US
    for gap, what, calls, where in steps:
        now += gap
        holder.step(now, what, calls, where)
        assert holder.counters.used <= monthly
    used = sum(cost for _, cost in holder.calls)
    assert used + sum(granted for _, _, granted in holder.out) <= monthly


@settings(deadline=None)
@given(
    ceilings,
    st.lists(st.tuples(gaps, st.integers(1, 30)), max_size=15),
    st.lists(st.tuples(st.integers(0, LEASE_US // 20), st.integers(1, 30)), max_size=15),
    st.lists(st.tuples(gaps, st.integers(1, 30)), max_size=15),
    st.integers(1, 50),
    st.data(),
)
def test_giving_back_is_as_if_those_calls_had_never_been_taken(
    ceiling: Ceiling,
    before: list[tuple[int, int]],
    meanwhile: list[tuple[int, int]],
    after: list[tuple[int, int]],
    wanted: int,
    data: st.DataObject,
) -> None:
    """Compared with a deployment whose holder took, when it gave back, what it had used."""
    leasing, plain = Holder(Limits(ceiling, None)), Holder(Limits(ceiling, None))
    now = _both(leasing, plain, before, START_US)
    leasing.lease(wanted, now)
    if not leasing.out:
        return
    token, _, granted = leasing.out[0]
    now = _both(leasing, plain, meanwhile, now)
    used = data.draw(st.integers(0, granted))
    leasing.counters, back = give_back(leasing.counters, token, granted - used, now)
    assert back == granted - used
    assert not used or plain.take(used, now)
    assert leasing.counters.used == plain.counters.used
    assert present(leasing.counters.bucket, ceiling, now) == present(
        plain.counters.bucket, ceiling, now
    )
    for gap, cost in after:
        now += gap
        assert leasing.take(cost, now) == plain.take(cost, now)


def _both(leasing: Holder, plain: Holder, takes: list[tuple[int, int]], now: int) -> int:
    """Takes from both, what the leasing one admits: places that are held refuse some."""
    for gap, cost in takes:
        now += gap
        if leasing.take(cost, now):
            assert plain.take(cost, now)
    return now


@settings(deadline=None)
@given(ceilings, steps, st.integers(1, 50))
def test_after_waiting_as_told_the_call_is_admitted_though_nothing_was_given_back(
    ceiling: Ceiling, steps: list[tuple[int, str, int, float]], cost: int
) -> None:
    holder, now = Holder(Limits(ceiling, None)), START_US
    for gap, what, calls, where in steps:
        now += gap
        holder.step(now, what, calls, where)
    take = Take(DEPLOYMENT, holder.limits, cost)
    _, refused = decide(holder.counters, take, now)
    if refused.wait_us is None:
        assert (refused.decision is Decision.ALLOWED) == (cost <= ceiling.burst)
        return
    assert decide(holder.counters, take, now + refused.wait_us)[1].decision is Decision.ALLOWED
    just_before = decide(holder.counters, take, now + refused.wait_us - 1)[1]
    assert just_before.decision is Decision.BURST_EXCEEDED
    assert just_before.wait_us == 1


@settings(deadline=None)
@given(ceilings, steps)
def test_the_whole_burst_is_there_when_it_was_said_to_be(
    ceiling: Ceiling, steps: list[tuple[int, str, int, float]]
) -> None:
    holder, now = Holder(Limits(ceiling, None)), START_US
    for gap, what, calls, where in steps:
        now += gap
        holder.step(now, what, calls, where)
    look = Take(DEPLOYMENT, holder.limits, 0)
    reset = decide(holder.counters, look, now)[1].burst_reset_us
    assert decide(holder.counters, look, now + reset)[1].burst_remaining == ceiling.burst
    if reset:
        short = decide(holder.counters, look, now + reset - 1)[1].burst_remaining
        assert short < ceiling.burst


def _leased(limits: Limits, calls: int, now: int = START_US) -> tuple[Counters, Grant]:
    return lease(Counters(), Want(DEPLOYMENT, limits, calls, "token"), now)


def test_a_lease_grants_what_there_is() -> None:
    assert _leased(Limits(Ceiling(10, 20), None), 100)[1].calls == 20
    assert _leased(Limits(Ceiling(10, 20), 7), 100)[1].calls == 7


def test_a_lease_of_nothing_is_refused_as_one_call_would_be() -> None:
    limits = Limits(Ceiling(10, 20), None)
    counters, _ = decide(Counters(), Take(DEPLOYMENT, limits, 20), START_US)
    after, grant = lease(counters, Want(DEPLOYMENT, limits, 5, "token"), START_US)
    assert (after, grant.calls, grant.lease_id) == (counters, 0, "")
    assert grant.reading.decision is Decision.BURST_EXCEEDED
    assert grant.reading.retry_after == timedelta(milliseconds=100)


def test_a_lease_is_given_back_once_and_never_more_than_was_granted() -> None:
    counters, grant = _leased(Limits(Ceiling(10, 20), 100), 5)
    token = f"{grant.reading.month.name}.token"
    counters, back = give_back(counters, token, 500, START_US)
    assert (back, counters.used) == (5, 0)
    assert give_back(counters, token, 5, START_US) == (counters, 0)
    assert give_back(counters, "2026-11.other", 5, START_US) == (counters, 0)


def test_what_a_dead_holder_held_stays_debited() -> None:
    limits = Limits(Ceiling(10, 20), 100)
    counters, grant = _leased(limits, 15)
    ended = START_US + HELD_US
    assert give_back(counters, f"{grant.reading.month.name}.token", 15, ended) == (counters, 0)
    _, look = decide(counters, Take(DEPLOYMENT, limits, 0), ended)
    assert (look.used, look.burst_remaining) == (15, 5)
    _, later = decide(counters, Take(DEPLOYMENT, limits, 0), ended + 15 * 100_000)
    assert (later.used, later.burst_remaining) == (15, 20)


def test_a_deployment_has_only_so_many_leases_at_once() -> None:
    limits, counters = Limits(Ceiling(1_000, 2_000), None), Counters()
    for number in range(MAX_LEASES):
        counters, grant = lease(counters, Want(DEPLOYMENT, limits, 1, str(number)), START_US)
        assert grant.calls == 1
    _, refused = lease(counters, Want(DEPLOYMENT, limits, 1, "one more"), START_US)
    assert (refused.calls, refused.reading.wait_us) == (0, HELD_US)
    assert refused.reading.decision is Decision.BURST_EXCEEDED


@settings(deadline=None)
@given(ceilings, ceilings, st.integers(1, 50))
def test_limits_that_change_while_calls_are_leased_count_at_once(
    first: Ceiling, second: Ceiling, calls: int
) -> None:
    counters, grant = _leased(Limits(first, None), calls)
    _, look = decide(counters, Take(DEPLOYMENT, Limits(second, None), 0), START_US)
    assert look.decision is Decision.ALLOWED
    assert look.burst_remaining == max(0, second.burst - grant.calls)


def test_a_clock_that_was_set_back_holds_no_place_for_longer_than_a_lease() -> None:
    limits = Limits(Ceiling(10, 20), None)
    counters, _ = _leased(limits, 20)
    earlier = START_US - 3_600 * MICROSECONDS
    _, refused = decide(counters, Take(DEPLOYMENT, limits, 20), earlier)
    assert refused.wait_us is not None
    assert refused.wait_us <= HELD_US + 2 * limits.ceiling.tolerance_us


def test_an_id_leads_back_to_deployment_and_month_and_nothing_else_is_one() -> None:
    deployment, token = new_deployment_id(), new_token()
    text = lease_id(deployment, "2026-11", token)
    assert named(text) == Named(deployment, "2026-11", token)
    assert len({new_token() for _ in range(1_000)}) == 1_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dep_1",
        "dep_1.2026-11",
        "dep_1.2026-11.short",
        "dep_1}.2026-11." + "a" * 24,
        "dep_1.2026-11." + "a" * 23 + " ",
        "dep_1.2026-11." + "a" * 24 + "\n",
        "dep_1.2026-1\u0661." + "a" * 24,
    ],
)
def test_what_is_no_id_of_a_lease_names_nothing(text: str) -> None:
    assert named(LeaseId(text)) is None


def test_tokens_stay_as_they_are_in_the_counters() -> None:
    counters, _ = _leased(Limits(Ceiling(10, 20), None), 5)
    assert counters.bucket is not None
    (held,) = counters.bucket.leases
    assert held == replace(held, token="2026-11.token", ends_us=START_US + HELD_US, calls=5)
