"""The time, passed in where it matters so that a test can choose it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
# Seconds since some moment: never set, never back.
SteadyClock = Callable[[], float]


def utc_now() -> datetime:
    """Returns the present in UTC, with its time zone."""
    return datetime.now(UTC)


def steady_seconds() -> float:
    """Returns seconds that pass while the machine is suspended too, where the system counts them.

    Other monotonic clocks stand still then: what ran out meanwhile would seem to be valid.
    """
    return time.clock_gettime(_STEADY) if _STEADY is not None else time.monotonic()


_STEADY: int | None = getattr(time, "CLOCK_BOOTTIME", None)
