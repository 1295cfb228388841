"""The time, passed in where it matters so that a test can choose it."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Returns the present in UTC, with its time zone."""
    return datetime.now(UTC)
