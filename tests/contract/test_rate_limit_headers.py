"""The fields by which clients pace themselves, read back by a parser of structured fields."""

import math
from calendar import monthrange
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import http_sf
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.app_proxy.door import Allowance, Decision, key_invalid, over_limit
from services.app_proxy.problems import answer_to
from services.app_proxy.rate_limit_headers import (
    Quota,
    burst_quota,
    month_quota,
    rate_limit_headers,
)

MOST = 999_999_999_999_999
waits = st.timedeltas(timedelta(0), timedelta(days=31))
bursts = st.builds(
    burst_quota, st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**6), waits
)


def fields(headers: Mapping[str, str]) -> tuple[Any, Any]:
    """Returns the parameters of the items of both fields by their names."""
    policies: Any = http_sf.parse(headers["ratelimit-policy"].encode(), tltype="list")
    limits: Any = http_sf.parse(headers["ratelimit"].encode(), tltype="list")
    return dict(policies), dict(limits)


def month(remaining: int, reset: timedelta, at: datetime | None = None) -> Quota:
    return month_quota(1_000, remaining, reset, at or datetime(2026, 11, 22, 12, tzinfo=UTC))


def test_both_limits_are_told_by_name() -> None:
    quotas = [
        burst_quota(20, 10, 19, timedelta(milliseconds=100)),
        month(995, timedelta(days=8, hours=12)),
    ]
    headers = rate_limit_headers(quotas)
    assert headers == {
        "ratelimit-policy": '"burst";q=20;w=2, "month";q=1000;w=2592000',
        "ratelimit": '"burst";r=19;t=1, "month";r=995;t=734400',
    }
    assert fields(headers) == (
        {"burst": {"q": 20, "w": 2}, "month": {"q": 1000, "w": 2_592_000}},
        {"burst": {"r": 19, "t": 1}, "month": {"r": 995, "t": 734_400}},
    )


def test_what_is_not_known_is_not_told() -> None:
    assert rate_limit_headers([]) == {}
    assert rate_limit_headers([], retry_after=3) == {}


@given(st.lists(bursts, min_size=1, max_size=1), st.one_of(st.none(), st.integers(1, 10**7)))
def test_whatever_the_limits_the_fields_can_be_read(quotas: list[Quota], wait: int | None) -> None:
    (quota,) = quotas
    policies, limits = fields(rate_limit_headers(quotas, wait))
    assert policies["burst"]["q"] == quota.calls
    # The window is never shorter than the time in which the whole burst comes back, nor zero.
    assert policies["burst"]["w"] == quota.window >= 1
    assert limits["burst"]["r"] == quota.remaining
    if wait is not None and quota.remaining == 0:
        assert limits["burst"]["t"] == wait
    else:
        assert limits["burst"]["t"] == math.ceil(quota.reset / timedelta(seconds=1))


def test_numbers_that_no_field_can_hold_are_cut() -> None:
    headers = rate_limit_headers([burst_quota(2**62, 1, 2**62, timedelta(days=10**9 - 1))])
    policies, limits = fields(headers)
    assert policies["burst"]["q"] == limits["burst"]["r"] == MOST


@given(
    st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 hypothesis wants naive bounds
    st.timedeltas(timedelta(hours=-1), timedelta(hours=1)),
)
def test_the_window_of_a_month_is_its_length_whatever_the_clocks_say(
    at: datetime, skew: timedelta
) -> None:
    days = monthrange(at.year, at.month)[1]
    next_month = datetime(at.year, at.month, 1, tzinfo=UTC) + timedelta(days=days)
    policies, _ = fields(rate_limit_headers([month(1, next_month - at, at + skew)]))
    assert policies["month"]["w"] == days * 86_400


@pytest.mark.promise("P-05")
@pytest.mark.parametrize(
    ("decision", "wait"),
    [
        (Decision.BURST_EXCEEDED, timedelta(milliseconds=120)),
        (Decision.BURST_EXCEEDED, timedelta(seconds=1.001)),
        (Decision.QUOTA_EXCEEDED, timedelta(days=8, microseconds=1)),
    ],
)
def test_a_refusal_names_one_time_in_both_its_fields(decision: Decision, wait: timedelta) -> None:
    spent = decision is Decision.QUOTA_EXCEEDED
    quotas = (
        burst_quota(20, 10, 5 if spent else 0, timedelta(seconds=2)),
        month(0 if spent else 995, timedelta(days=8, microseconds=1)),
    )
    refusal = over_limit(Allowance(decision, wait, quotas))
    assert refusal is not None
    answer = answer_to(refusal, None)
    _, limits = fields(answer.headers)
    used_up = limits["month" if spent else "burst"]
    assert used_up == {"r": 0, "t": int(answer.headers["retry-after"])}


def test_who_has_no_valid_key_learns_of_no_limit() -> None:
    quotas = (burst_quota(20, 10, 5, timedelta(seconds=2)),)
    refused = over_limit(Allowance(Decision.KEY_INVALID, quotas=quotas))
    assert refused == key_invalid()
    assert not {"ratelimit", "ratelimit-policy"} & answer_to(key_invalid(), None).headers.keys()
