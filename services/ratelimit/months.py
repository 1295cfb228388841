"""UTC calendar months, over which a plan's quota runs (P-05)."""

from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def moment(now_us: int) -> datetime:
    """Returns the time that is `now_us` microseconds after the epoch."""
    return _EPOCH + now_us * _MICROSECOND


def microseconds(at: datetime) -> int:
    """Returns the microseconds from the epoch to `at`, exactly."""
    return (at - _EPOCH) // _MICROSECOND


def month_of(at: datetime) -> str:
    """Returns the month of `at` in UTC as `2026-11`."""
    utc = at.astimezone(UTC)
    return f"{utc.year:04}-{utc.month:02}"


def next_month(at: datetime) -> datetime:
    """Returns the first moment of the month after that of `at`, in UTC."""
    utc = at.astimezone(UTC)
    years, month = divmod(utc.month, 12)
    return datetime(utc.year + years, month + 1, 1, tzinfo=UTC)
