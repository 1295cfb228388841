"""The generic cell rate algorithm (ITU-T I.371), in integer microseconds.

A deployment's bucket is one moment, the *theoretical arrival time*: when everything admitted so
far would have been worked off at the sustained rate. How far it lies ahead of now is the backlog;
a call is admitted as long as the backlog with it stays within `burst` calls.
"""

from dataclasses import dataclass

MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How often a deployment may be called: sustained, and at once."""

    rate_per_second: int
    burst: int

    @property
    def interval_us(self) -> int:
        """Microseconds that one call takes up; rounded up, so that the rate is never exceeded."""
        return -(-MICROSECONDS // self.rate_per_second)

    @property
    def tolerance_us(self) -> int:
        """The longest backlog, in microseconds."""
        return self.burst * self.interval_us


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is stored: the theoretical arrival time, and the interval that it was reckoned with."""

    arrival_us: int
    interval_us: int


def backlog_us(bucket: Bucket | None, ceiling: Ceiling, now_us: int) -> int:
    """Returns the backlog in microseconds of `ceiling`, at most its tolerance.

    A bucket that was filled at another rate keeps its number of calls, so that a raised limit
    counts at once (P-05). The bound also forgives a clock that was set back.
    """
    if bucket is None:
        return 0
    owed = max(0, bucket.arrival_us - now_us)
    if bucket.interval_us != ceiling.interval_us:
        owed = -(-owed // bucket.interval_us) * ceiling.interval_us
    return min(owed, ceiling.tolerance_us)


def wait_us(owed_us: int, ceiling: Ceiling, cost: int) -> int | None:
    """Returns how long until `cost` calls fit, 0 for now; None when they never will."""
    if cost > ceiling.burst:
        return None
    return max(0, owed_us + cost * ceiling.interval_us - ceiling.tolerance_us)


def remaining(owed_us: int, ceiling: Ceiling) -> int:
    """Returns how many calls would be admitted at this moment."""
    return (ceiling.tolerance_us - owed_us) // ceiling.interval_us
