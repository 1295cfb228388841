"""The fields `RateLimit-Policy` and `RateLimit`, by which a client can pace itself.

As draft-ietf-httpapi-ratelimit-headers-11 has them: lists of quoted names with parameters (RFC
9651).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

# The largest integer that a structured field can hold (RFC 9651, 3.3.1).
_MOST = 999_999_999_999_999
# Any moment within a month, reckoned back from its end: clocks may differ a little.
_WITHIN_MONTH = timedelta(days=15)


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit of a deployment, and how it stands.

    `name` is of letters alone. `window` are the whole seconds in which all of `calls` come back,
    `reset` is how long until they are back from now.
    """

    name: str
    calls: int
    window: int
    remaining: int
    reset: timedelta


def burst_quota(calls: int, rate_per_second: int, remaining: int, reset: timedelta) -> Quota:
    """Returns the ceiling of calls that may come at once."""
    return Quota("burst", calls, -(-calls // rate_per_second), remaining, reset)


def month_quota(calls: int, remaining: int, reset: timedelta, now: datetime) -> Quota:
    """Returns the calls of the UTC calendar month that ends `reset` from `now` (P-05)."""
    within = now.astimezone(UTC) + reset - _WITHIN_MONTH
    begins = datetime(within.year, within.month, 1, tzinfo=UTC)
    years, month = divmod(within.month, 12)
    ends = datetime(within.year + years, month + 1, 1, tzinfo=UTC)
    return Quota("month", calls, int((ends - begins).total_seconds()), remaining, reset)


def rate_limit_headers(
    quotas: Sequence[Quota], retry_after: int | None = None
) -> Mapping[str, str]:
    """Returns both fields, by lower-case name; none where no quota is known.

    Where the answer says `retry_after` (whole seconds), what is used up says no other time: from
    then on a call is admitted, though not yet as many as the quota holds.
    """
    if not quotas:
        return {}
    policies = [f'"{quota.name}";q={_number(quota.calls)};w={_window(quota)}' for quota in quotas]
    limits = [
        f'"{quota.name}";r={_number(quota.remaining)};t={_reset(quota, retry_after)}'
        for quota in quotas
    ]
    return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(limits)}


def _window(quota: Quota) -> int:
    # Never zero; the draft knows no part of a second.
    return max(1, _number(quota.window))


def _reset(quota: Quota, retry_after: int | None) -> int:
    if retry_after is not None and quota.remaining <= 0:
        return min(_MOST, retry_after)
    # Rounded up: who waits that long has waited long enough.
    return _number(math.ceil(quota.reset / timedelta(seconds=1)))


def _number(value: int) -> int:
    return min(_MOST, max(0, value))
