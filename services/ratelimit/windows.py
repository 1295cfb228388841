"""Fixed windows of the UTC calendar, and what is counted in them.

`decide` is the rule that `window.lua` carries out next to the counters; a test proves that the two
agree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum

from services.ratelimit.months import microseconds, moment

# A count that reaches it stays there: the largest number that the script can tell exactly.
MOST_COUNTED = 2**53
MICROSECONDS = 1_000_000
_DAY = 86_400
_SECONDS = {"second": 1, "minute": 60, "hour": 3_600, "day": _DAY, "week": 7 * _DAY}
# 1970-01-01 was a Thursday; weeks begin on Monday (ISO 8601).
_THURSDAY_US = 3 * _DAY * MICROSECONDS


class Unit(StrEnum):
    """`envoy.service.ratelimit.v3.RateLimitResponse.RateLimit.Unit`."""

    SECOND = "second"
    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    YEAR = "year"


class Mode(IntEnum):
    """What happens to hits that are over the limit."""

    # They refuse the whole request, and nothing of it is counted.
    ENFORCED = 0
    # They are counted, and refuse nothing.
    SHADOW = 1
    # They refuse the request and are counted all the same: they have happened already.
    COUNTED = 2


@dataclass(frozen=True, slots=True)
class Window:
    """From its first microsecond since the epoch to that of the next."""

    begins_us: int
    ends_us: int


@dataclass(frozen=True, slots=True)
class Counted:
    """Hits of one counter; 0 only asks, negative ones are given back."""

    counter: str
    unit: Unit
    multiplier: int
    limit: int
    hits: int
    mode: Mode


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer to `Counted`: whether it alone is over, what is left, and for how long."""

    over: bool
    left: int
    resets_us: int


def window_at(unit: Unit, multiplier: int, now_us: int) -> Window:
    """Returns the window of `multiplier` units that holds the moment.

    Windows are counted from the epoch, weeks from the Monday before it; those of months and years
    are the calendar's, from the year 0.
    """
    if unit is Unit.MONTH:
        return _months(multiplier, now_us)
    if unit is Unit.YEAR:
        return _months(12 * multiplier, now_us)
    span = _SECONDS[unit] * multiplier * MICROSECONDS
    shift = _THURSDAY_US if unit is Unit.WEEK else 0
    begins = (now_us + shift) // span * span - shift
    return Window(begins, begins + span)


def decide(
    counts: Mapping[str, int], wanted: Sequence[Counted], now_us: int
) -> tuple[dict[str, int], list[Outcome]]:
    """Returns the counts after `wanted` and one outcome each: all is counted, or nothing."""
    tentative, over = dict(counts), []
    for each in wanted:
        over.append(_is_over(tentative.get(each.counter, 0), each))
        _count(tentative, each)
    admitted = not any(
        each.mode is not Mode.SHADOW and is_over for each, is_over in zip(wanted, over, strict=True)
    )
    after = dict(counts)
    for each in wanted:
        if admitted or each.mode is Mode.COUNTED:
            _count(after, each)
    return after, [
        Outcome(is_over, *_left(each, after, now_us))
        for each, is_over in zip(wanted, over, strict=True)
    ]


def _is_over(before: int, wanted: Counted) -> bool:
    if wanted.hits == 0:
        return before >= wanted.limit
    return wanted.hits > 0 and before + wanted.hits > wanted.limit


def _count(counts: dict[str, int], wanted: Counted) -> None:
    count = counts.get(wanted.counter, 0) + wanted.hits
    counts[wanted.counter] = min(MOST_COUNTED, max(0, count))


def _left(wanted: Counted, counts: Mapping[str, int], now_us: int) -> tuple[int, int]:
    window = window_at(wanted.unit, wanted.multiplier, now_us)
    return max(0, wanted.limit - counts.get(wanted.counter, 0)), window.ends_us - now_us


def _months(span: int, now_us: int) -> Window:
    at = moment(now_us)
    first = (at.year * 12 + at.month - 1) // span * span
    return Window(_first_of(first), _first_of(first + span))


def _first_of(months: int) -> int:
    year, month = divmod(months, 12)
    # Only a span of many years reaches back before the first year that there is.
    return microseconds(datetime(max(1, year), month + 1, 1, tzinfo=UTC))
