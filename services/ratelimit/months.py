"""UTC calendar months, over which a plan's quota runs (P-05)."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# A month's count stays readable for a while after the month; `acquire.lua` says the same.
KEPT_US = 40 * 86_400 * 1_000_000


@dataclass(frozen=True, slots=True)
class Month:
    """A month as `2026-11`, with its first moment and that of the next in microseconds."""

    name: str
    begins_us: int
    ends_us: int

    def holds(self, now_us: int) -> bool:
        """Whether the moment lies in it."""
        return self.begins_us <= now_us < self.ends_us


def month_at(now_us: int) -> Month:
    """Returns the month in UTC of the moment `now_us` microseconds after the epoch."""
    at = moment(now_us)
    begins = datetime(at.year, at.month, 1, tzinfo=UTC)
    return Month(month_of(at), microseconds(begins), microseconds(next_month(at)))


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


def month_named(name: str) -> Month:
    """Returns the month of that name, as `2026-11`."""
    year, month = map(int, name.split("-"))
    return month_at(microseconds(datetime(year, month, 1, tzinfo=UTC)))


def months_before(name: str, months: int) -> str:
    """Returns the name of the month that lies `months` before that of `name`."""
    year, month = map(int, name.split("-"))
    earlier, index = divmod(year * 12 + month - 1 - months, 12)
    return f"{earlier:04}-{index + 1:02}"
