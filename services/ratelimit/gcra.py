"""The generic cell rate algorithm (ITU-T I.371), in integer microseconds, with places held.

A deployment's bucket is one moment, the *theoretical arrival time*: when everything admitted so
far would have been worked off at the sustained rate. How far it lies ahead of now is the backlog;
a call is admitted as long as the backlog with it stays within `burst` calls.

Calls that are leased hold places in the burst instead: a place that is held is not worked off. When
the lease is given back, or has ended, the calls that were used count as arriving at that moment,
which is no earlier than they did; the others were never there. So the burst and the rate hold for
the moments of use, wherever within the lease those were, and giving back equals never having taken.
"""

from collections.abc import Iterator
from dataclasses import dataclass

MICROSECONDS = 1_000_000
# How long its holder may use a lease, and how long its places are held for it at most: what is not
# used comes back on its way home, too.
LEASE_US = MICROSECONDS
HELD_US = LEASE_US + MICROSECONDS // 2


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
class Held:
    """Places that a lease holds, until it is given back or ends."""

    token: str
    ends_us: int
    calls: int


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is stored: the theoretical arrival time, and the interval that it was reckoned with.

    The leases that are out stand beside it, the one that ends first in front.
    """

    arrival_us: int
    interval_us: int
    leases: tuple[Held, ...] = ()


def present(bucket: Bucket | None, ceiling: Ceiling, now_us: int) -> Bucket:
    """Returns the bucket as it stands now, reckoned with `ceiling`.

    Leases that ended have become arrivals. A bucket that was filled at another rate keeps its
    number of calls, so that a raised limit counts at once (P-05). What no clock that only goes
    forward could have written is bounded: a clock that was set back locks nobody out.
    """
    if bucket is None:
        return Bucket(now_us, ceiling.interval_us)
    arrival, leases = bucket.arrival_us, bucket.leases
    while leases and leases[0].ends_us <= now_us:
        arrival = _worked_off(arrival, leases[0].ends_us, leases[0].calls, bucket.interval_us)
        leases = leases[1:]
    owed = max(0, arrival - now_us)
    if bucket.interval_us != ceiling.interval_us:
        owed = -(-owed // bucket.interval_us) * ceiling.interval_us
    latest = now_us + HELD_US
    kept = tuple(Held(held.token, min(held.ends_us, latest), held.calls) for held in leases)
    return Bucket(now_us + min(owed, ceiling.tolerance_us), ceiling.interval_us, kept)


def taken(bucket: Bucket, now_us: int, calls: int) -> Bucket:
    """Returns the bucket after `calls` arrived now."""
    arrival = _worked_off(bucket.arrival_us, now_us, calls, bucket.interval_us)
    return Bucket(arrival, bucket.interval_us, bucket.leases)


def wait_us(bucket: Bucket, ceiling: Ceiling, cost: int, now_us: int) -> int | None:
    """Returns how long until `cost` calls fit, if nothing is given back; 0 for now, None for never.

    `bucket` is the present one.
    """
    if cost > ceiling.burst:
        return None
    room = (ceiling.burst - cost) * ceiling.interval_us
    for arrival, held_us, until in _stages(bucket):
        fits = arrival - (room - held_us)
        if held_us <= room and (until is None or fits < until):
            return max(0, fits - now_us)
    return None


def remaining(bucket: Bucket, ceiling: Ceiling, now_us: int) -> int:
    """Returns how many calls would be admitted at this moment; `bucket` is the present one."""
    held = sum(lease.calls for lease in bucket.leases)
    owed = max(0, bucket.arrival_us - now_us)
    return max(0, (ceiling.tolerance_us - owed) // ceiling.interval_us - held)


def _worked_off(arrival_us: int, at_us: int, calls: int, interval_us: int) -> int:
    return max(arrival_us, at_us) + calls * interval_us


def _stages(bucket: Bucket) -> Iterator[tuple[int, int, int | None]]:
    """Yields arrival time, microseconds held and end of each stage in which no lease ends."""
    arrival, interval = bucket.arrival_us, bucket.interval_us
    held_us = sum(lease.calls for lease in bucket.leases) * interval
    for lease in bucket.leases:
        yield arrival, held_us, lease.ends_us
        arrival = _worked_off(arrival, lease.ends_us, lease.calls, interval)
        held_us -= lease.calls * interval
    yield arrival, held_us, None
