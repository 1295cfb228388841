"""What may be taken, and what is answered.

`decide` is the rule that `acquire.lua` carries out next to the counters; a test proves that the
two agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from services.ratelimit.gcra import Bucket, Ceiling, backlog_us, remaining, wait_us
from services.ratelimit.months import microseconds, moment, next_month
from services.shared.errors import InvalidFieldError
from services.shared.ids import DeploymentId
from services.shared.principal import Plan

MAX_COST = 1_000_000
MAX_ITEMS = 256
DIGEST_BYTES = 32


class Decision(StrEnum):
    """`bulkhead.ratelimit.v1.Decision`."""

    ALLOWED = "allowed"
    BURST_EXCEEDED = "burst_exceeded"
    QUOTA_EXCEEDED = "quota_exceeded"
    KEY_INVALID = "key_invalid"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan admits; `monthly` is None without a monthly limit."""

    ceiling: Ceiling
    monthly: int | None


PlanLimits = Mapping[Plan, Limits]


@dataclass(frozen=True, slots=True)
class Item:
    """One presented key and the calls it asks for."""

    key_digest: bytes
    cost: int


@dataclass(frozen=True, slots=True)
class Take:
    """Calls of one deployment under the limits of its plan; a cost of 0 only looks."""

    deployment_id: DeploymentId
    limits: Limits
    cost: int


@dataclass(frozen=True, slots=True)
class Counters:
    """What is remembered of a deployment in the present month."""

    bucket: Bucket | None = None
    used: int = 0


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer to a take, and the counters after it.

    `retry_after` is None when it was admitted, and when it can never be: it costs more than the
    burst or the month holds.
    """

    decision: Decision
    retry_after: timedelta | None
    used: int
    burst_remaining: int
    at: datetime


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
    if not 1 <= len(items) <= MAX_ITEMS:
        raise InvalidFieldError("items", f"must be 1 to {MAX_ITEMS}")
    for index, item in enumerate(items):
        if len(item.key_digest) != DIGEST_BYTES:
            raise InvalidFieldError(f"items[{index}].key_digest", f"must have {DIGEST_BYTES} bytes")
        if not 0 <= item.cost <= MAX_COST:
            raise InvalidFieldError(f"items[{index}].cost", f"must be between 0 and {MAX_COST}")
    return items


def decide(before: Counters, take: Take, now_us: int) -> tuple[Counters, Reading]:
    """Returns the counters after `take` and the answer: all of its cost, or nothing (P-05)."""
    ceiling, cost = take.limits.ceiling, take.cost
    owed = backlog_us(before.bucket, ceiling, now_us)
    for_burst = wait_us(owed, ceiling, cost)
    for_month = _month_wait_us(before.used, take.limits.monthly, cost, now_us)
    decision = _decision(for_burst, for_month)
    after, used = before, before.used
    if decision is Decision.ALLOWED and cost:
        owed += cost * ceiling.interval_us
        used += cost
        after = Counters(Bucket(now_us + owed, ceiling.interval_us), used)
    wait = _retry_after(decision, for_burst, for_month)
    return after, Reading(decision, wait, used, remaining(owed, ceiling), moment(now_us))


def _month_wait_us(used: int, monthly: int | None, cost: int, now_us: int) -> int | None:
    if monthly is None or cost == 0:
        return 0
    if cost > monthly:
        return None
    if used + cost <= monthly:
        return 0
    return microseconds(next_month(moment(now_us))) - now_us


def _decision(for_burst: int | None, for_month: int | None) -> Decision:
    # The month first: it is the longer wait, and the one that a bigger plan ends.
    if for_month != 0:
        return Decision.QUOTA_EXCEEDED
    return Decision.ALLOWED if for_burst == 0 else Decision.BURST_EXCEEDED


def _retry_after(
    decision: Decision, for_burst: int | None, for_month: int | None
) -> timedelta | None:
    if decision is Decision.ALLOWED or for_burst is None or for_month is None:
        return None
    return timedelta(microseconds=max(for_burst, for_month))
