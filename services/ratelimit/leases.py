"""Calls taken in advance: granted, pre-debited, given back once (P-05).

`lease` and `give_back` are the rules that `acquire.lua` and `give_back.lua` carry out next to the
counters; a test proves that they agree.
"""

import re
import secrets
from dataclasses import dataclass, replace
from typing import NamedTuple, NewType

from services.ratelimit.domain import (
    DIGEST_BYTES,
    NO_TENANT,
    Counters,
    Decision,
    Limits,
    Reading,
    Take,
    check_number,
    decide,
    quota_remaining,
)
from services.ratelimit.gcra import HELD_US, Bucket, Held, present, taken
from services.shared.errors import InvalidFieldError
from services.shared.ids import DeploymentId, TenantId

LeaseId = NewType("LeaseId", str)

MAX_CALLS = 10_000
# Of one deployment at once: each is looked at by every call of the deployment.
MAX_LEASES = 64
_TOKEN_BYTES = 18
_ID = re.compile(
    r"(?P<deployment>[a-z]{2,8}_[0-9a-z]{1,40})\.(?P<month>\d{4}-\d\d)\.(?P<token>[\w-]{24})",
    re.ASCII,
)


class LeaseItem(NamedTuple):
    """One presented key and the calls that are wanted in advance."""

    key_digest: bytes
    calls: int


class Want(NamedTuple):
    """Calls of one deployment wanted in advance; the token makes the lease's id unguessable."""

    deployment_id: DeploymentId
    limits: Limits
    calls: int
    token: str
    tenant_id: TenantId = NO_TENANT


class Grant(NamedTuple):
    """What was granted, 0 when it was refused, and the counters after it.

    The reading of a refusal is that of a take of one call.
    """

    lease_id: LeaseId
    calls: int
    reading: Reading


class Return(NamedTuple):
    """Calls of a lease that were not used."""

    lease_id: LeaseId
    unused: int


@dataclass(frozen=True, slots=True)
class Named:
    """What a lease's id says: whose it is, and of which month (as `2026-11`) its calls are."""

    deployment_id: DeploymentId
    month: str
    token: str


class Returned(NamedTuple):
    """Calls that came back: to which month of which deployment, and its count afterwards.

    `used` is None when nothing came back, or the month is no longer remembered.
    """

    calls: int
    deployment_id: DeploymentId
    month: str
    used: int | None


def new_token() -> str:
    """Returns 144 random bits as 24 characters."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def lease_id(deployment_id: DeploymentId, month: str, token: str) -> LeaseId:
    """Returns the id that leads back to the lease; only its holder knows it."""
    return LeaseId(f"{deployment_id}.{month}.{token}")


def named(text: str) -> Named | None:
    """Returns what a lease's id says; None when it is no such id."""
    found = _ID.fullmatch(text)
    if found is None:
        return None
    return Named(DeploymentId(found["deployment"]), found["month"], found["token"])


def checked_wants(items: list[LeaseItem]) -> list[LeaseItem]:
    """Returns `items` when there are 1 to 256 and each can be decided.

    Raises:
        InvalidFieldError: too few, too many, a bad digest, or not 1 to 10,000 calls.
    """
    check_number(len(items))
    for index, (key_digest, calls) in enumerate(items):
        if len(key_digest) != DIGEST_BYTES:
            raise InvalidFieldError(f"items[{index}].key_digest", f"must have {DIGEST_BYTES} bytes")
        if not 1 <= calls <= MAX_CALLS:
            raise InvalidFieldError(f"items[{index}].calls", f"must be between 1 and {MAX_CALLS}")
    return items


def checked_returns(items: list[Return]) -> list[Return]:
    """Returns `items` when there are 1 to 256 and each has a count of calls.

    Raises:
        InvalidFieldError: too few, too many, or not 0 to 10,000 calls.
    """
    check_number(len(items))
    for index, item in enumerate(items):
        if not 0 <= item.unused <= MAX_CALLS:
            raise InvalidFieldError(f"items[{index}].unused", f"must be between 0 and {MAX_CALLS}")
    return items


def lease(before: Counters, want: Want, now_us: int) -> tuple[Counters, Grant]:
    """Returns the counters after the lease and what it grants: as many calls as there are."""
    _, look = decide(before, Take(want.deployment_id, want.limits, 0), now_us)
    bucket = present(before.bucket, want.limits.ceiling, now_us)
    left = quota_remaining(want.limits, before.used)
    calls = min(want.calls, look.burst_remaining, want.calls if left is None else left)
    if calls < 1:
        _, refused = decide(before, Take(want.deployment_id, want.limits, 1), now_us)
        return before, Grant(LeaseId(""), 0, refused)
    if len(bucket.leases) >= MAX_LEASES:
        wait = bucket.leases[0].ends_us - now_us
        refused = look._replace(decision=Decision.BURST_EXCEEDED, wait_us=wait)
        return before, Grant(LeaseId(""), 0, refused)
    held = Held(f"{look.month.name}.{want.token}", now_us + HELD_US, calls)
    after = Counters(replace(bucket, leases=(*bucket.leases, held)), before.used + calls)
    _, reading = decide(after, Take(want.deployment_id, want.limits, 0), now_us)
    return after, Grant(lease_id(want.deployment_id, look.month.name, want.token), calls, reading)


def give_back(before: Counters, token: str, unused: int, now_us: int) -> tuple[Counters, int]:
    """Returns the counters after the lease is over and the calls that came back.

    `token` is the lease's month and token. A lease that was given back, or ended, is none.
    """
    bucket = before.bucket
    found = [held for held in bucket.leases if held.token == token] if bucket else []
    if bucket is None or not found or found[0].ends_us <= now_us:
        return before, 0
    back = min(unused, found[0].calls)
    bucket = _ended(bucket, now_us)
    others = tuple(held for held in bucket.leases if held.token != token)
    bucket = taken(replace(bucket, leases=others), now_us, found[0].calls - back)
    return Counters(bucket, max(0, before.used - back)), back


def _ended(bucket: Bucket, now_us: int) -> Bucket:
    """Returns the bucket after the leases that ended have become arrivals, in its own interval."""
    while bucket.leases and bucket.leases[0].ends_us <= now_us:
        first, rest = bucket.leases[0], bucket.leases[1:]
        bucket = taken(replace(bucket, leases=rest), first.ends_us, first.calls)
    return bucket
