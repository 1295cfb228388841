"""What may be taken, and what is answered.

`decide` is the rule that `acquire.lua` carries out next to the counters; a test proves that the
two agree. The same rule for leases is in `leases.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple, Protocol

from services.ratelimit.gcra import (
    MICROSECONDS,
    Bucket,
    Ceiling,
    present,
    remaining,
    taken,
    wait_us,
)
from services.ratelimit.months import Month, moment, month_at
from services.shared.errors import InvalidFieldError
from services.shared.ids import DeploymentId, TenantId
from services.shared.principal import Plan

MAX_COST = 1_000_000
MAX_ITEMS = 256
DIGEST_BYTES = 32
# Whose a deployment is matters to what is written down of it alone.
NO_TENANT = TenantId("")


class Decision(StrEnum):
    """`bulkhead.ratelimit.v1.Decision`."""

    ALLOWED = "allowed"
    BURST_EXCEEDED = "burst_exceeded"
    QUOTA_EXCEEDED = "quota_exceeded"
    KEY_INVALID = "key_invalid"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan admits; `monthly` is None without a monthly limit."""

    ceiling: Ceiling
    monthly: int | None


PlanLimits = Mapping[Plan, Limits]


class MonthFloors(Protocol):
    """Knows what was counted before Valkey lost it: the durable counts of months."""

    async def floors(self, wanted: Sequence[DeploymentId], month: str) -> Sequence[int]:
        """Returns per deployment the calls of `month` (as `2026-11`) known of, 0 for none.

        Raises:
            UnavailableError: that cannot be found out; then nothing is taken of these.
        """
        ...


class Item(NamedTuple):
    """One presented key and the calls it asks for. A tuple, since there is one for each call."""

    key_digest: bytes
    cost: int


class Take(NamedTuple):
    """Calls of one deployment under the limits of its plan; a cost of 0 only looks."""

    deployment_id: DeploymentId
    limits: Limits
    cost: int
    tenant_id: TenantId = NO_TENANT


@dataclass(frozen=True, slots=True)
class Counters:
    """What is remembered of a deployment in the present month."""

    bucket: Bucket | None = None
    used: int = 0


class Reading(NamedTuple):
    """The answer to a take, and the counters after it; durations in microseconds.

    `wait_us` is None when it was admitted, and when it can never be: it costs more than the burst
    or the month holds. `used` are the calls of the month of `at_us`; those on lease count.
    """

    decision: Decision
    wait_us: int | None
    used: int
    burst_remaining: int
    # How long until the whole burst would be admitted again.
    burst_reset_us: int
    at_us: int
    month: Month

    @property
    def retry_after(self) -> timedelta | None:
        """How long to wait until the same take would be admitted."""
        return None if self.wait_us is None else timedelta(microseconds=self.wait_us)

    @property
    def at(self) -> datetime:
        """When it was decided."""
        return moment(self.at_us)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a deployment has used of its limits, at the moment of `reading`."""

    deployment_id: DeploymentId
    limits: Limits
    reading: Reading


def quota_remaining(limits: Limits, used: int) -> int | None:
    """Returns the calls left in the month; None without a monthly limit."""
    return None if limits.monthly is None else max(0, limits.monthly - used)


def checked_items(items: list[Item]) -> list[Item]:
    """Returns `items` when there are 1 to 256 and each can be decided.

    Raises:
        InvalidFieldError: too few, too many, a bad digest, or a cost outside 0 to 1,000,000.
    """
    check_number(len(items))
    for index, (key_digest, cost) in enumerate(items):
        if len(key_digest) != DIGEST_BYTES:
            raise InvalidFieldError(f"items[{index}].key_digest", f"must have {DIGEST_BYTES} bytes")
        if not 0 <= cost <= MAX_COST:
            raise InvalidFieldError(f"items[{index}].cost", f"must be between 0 and {MAX_COST}")
    return items


def check_number(items: int) -> None:
    """Returns when there are 1 to 256 items.

    Raises:
        InvalidFieldError: there are too few or too many.
    """
    if not 1 <= items <= MAX_ITEMS:
        raise InvalidFieldError("items", f"must be 1 to {MAX_ITEMS}")


def decide(before: Counters, take: Take, now_us: int) -> tuple[Counters, Reading]:
    """Returns the counters after `take` and the answer: all of its cost, or nothing (P-05)."""
    ceiling, cost, month = take.limits.ceiling, take.cost, month_at(now_us)
    bucket = present(before.bucket, ceiling, now_us)
    for_burst = wait_us(bucket, ceiling, cost, now_us) if cost else 0
    for_month = _month_wait_us(before.used, take.limits.monthly, cost, month.ends_us - now_us)
    decision = _decision(for_burst, for_month)
    after, used = before, before.used
    if decision is Decision.ALLOWED and cost:
        bucket = taken(bucket, now_us, cost)
        used += cost
        after = Counters(bucket, used)
    wait = _wait(decision, for_burst, for_month)
    reset = wait_us(bucket, ceiling, ceiling.burst, now_us) or 0
    left = remaining(bucket, ceiling, now_us)
    return after, Reading(decision, wait, used, left, reset, now_us, month)


def undecided(now_us: int, month: Month) -> Reading:
    """Returns the answer where what was used of the month cannot be found out: nothing is taken."""
    return Reading(Decision.UNAVAILABLE, MICROSECONDS, 0, 0, 0, now_us, month)


def _month_wait_us(used: int, monthly: int | None, cost: int, rest_us: int) -> int | None:
    if monthly is None or cost == 0:
        return 0
    if cost > monthly:
        return None
    return 0 if used + cost <= monthly else rest_us


def _decision(for_burst: int | None, for_month: int | None) -> Decision:
    # The month first: it is the longer wait, and the one that a bigger plan ends.
    if for_month != 0:
        return Decision.QUOTA_EXCEEDED
    return Decision.ALLOWED if for_burst == 0 else Decision.BURST_EXCEEDED


def _wait(decision: Decision, for_burst: int | None, for_month: int | None) -> int | None:
    if decision is Decision.ALLOWED or for_burst is None or for_month is None:
        return None
    return max(for_burst, for_month)
