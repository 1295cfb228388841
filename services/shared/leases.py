"""Admitting calls locally, out of leases that are taken when there is demand for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb

from services.shared.errors import UnavailableError
from services.shared.limits import CoalescedLimits
from services.shared.principal import Principal

# A lease takes at most this part of what is left, so that others are not refused for its sake.
_SHARE: Final = 8
_MOST_CALLS: Final = 10_000
# Fewer than this are cheaper one by one: a lease is asked about, taken and given back.
_FEWEST_CALLS: Final = 32
# Over how long demand is counted, and how far ahead a lease looks, both in seconds.
_WINDOW_SECONDS: Final = 0.25
_AHEAD_SECONDS: Final = 0.5
_MOST_HOLDINGS: Final = 10_000

Resolve = Callable[[bytes], Awaitable[Principal | None]]


@dataclass(slots=True)
class _Lease:
    lease_id: str
    left: int
    # Loop time.
    until: float
    end: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Holding:
    """What is held for one key, and how much it is asked for."""

    leases: list[_Lease] = field(default_factory=list)
    renewal: asyncio.Task[None] | None = None
    calls: int = 0
    since: float = 0.0
    per_second: float = 0.0

    def count(self, now: float) -> None:
        """Counts one call; demand is that of the window before, or of this one if it is more."""
        self.calls += 1
        elapsed = now - self.since
        if elapsed >= _WINDOW_SECONDS:
            self.per_second = self.calls / elapsed if elapsed < 2 * _WINDOW_SECONDS else 0.0
            self.calls, self.since = 0, now

    @property
    def wanted(self) -> int:
        """The calls to be expected while a lease lasts."""
        return min(_MOST_CALLS, int(self.per_second * _AHEAD_SECONDS))

    @property
    def left(self) -> int:
        """The calls that are held."""
        return sum(lease.left for lease in self.leases)


class LeasedLimits:
    """Admits calls out of leases while demand is high and the limit far; asks for each otherwise.

    A lease serves while it lasts, reckoned from when it was asked for, and while the key is valid:
    the resolver is asked each time. What is left comes back when it ends, when the key is revoked,
    and at the end. A holder that dies has used its calls; more than was granted is never admitted.
    """

    def __init__(self, limits: CoalescedLimits, resolve: Resolve) -> None:
        self._limits = limits
        self._resolve = resolve
        self._holdings: dict[bytes, _Holding] = {}
        self._returns: set[asyncio.Task[None]] = set()
        self._closed = False

    async def acquire(self, key_digest: bytes) -> pb.AcquireResult:
        """Takes one call of the deployment whose key has the digest.

        Of a call that was admitted locally the answer says no more than that.

        Raises:
            UnavailableError: ratelimit or auth is away, so nothing is known and nothing is open.
        """
        now = asyncio.get_running_loop().time()
        holding = self._holding(key_digest)
        holding.count(now)
        if holding.leases and await self._admits(key_digest, holding):
            return _ALLOWED
        result = await self._limits.acquire(key_digest)
        if result.decision == pb.DECISION_ALLOWED:
            self._renew(key_digest, holding)
        return result

    def held(self, key_digest: bytes) -> int:
        """Returns the calls that are held for the key now."""
        holding = self._holdings.get(key_digest)
        return holding.left if holding is not None else 0

    async def aclose(self) -> None:
        """Gives back what is left; whoever still asks is answered call by call."""
        self._closed = True
        renewals = [holding.renewal for holding in self._holdings.values() if holding.renewal]
        await asyncio.gather(*renewals)
        for holding in self._holdings.values():
            self._drop(holding)
        while self._returns:
            await asyncio.gather(*self._returns)

    async def _admits(self, key_digest: bytes, holding: _Holding) -> bool:
        if await self._resolve(key_digest) is None:
            self._drop(holding)
            return False
        now = asyncio.get_running_loop().time()
        for lease in holding.leases:
            if lease.left and now < lease.until:
                lease.left -= 1
                if not lease.left:
                    # What is held is not worked off: so it ends as soon as it is used up.
                    self._end(holding, lease)
                if 2 * holding.left < holding.wanted:
                    self._renew(key_digest, holding)
                return True
        return False

    def _holding(self, key_digest: bytes) -> _Holding:
        holding = self._holdings.get(key_digest)
        if holding is None:
            if len(self._holdings) >= _MOST_HOLDINGS:
                self._forget_idle()
            holding = self._holdings[key_digest] = _Holding()
        return holding

    def _forget_idle(self) -> None:
        busy = {key: each for key, each in self._holdings.items() if each.leases or each.renewal}
        self._holdings = busy

    def _renew(self, key_digest: bytes, holding: _Holding) -> None:
        if self._closed or holding.renewal or holding.wanted < _FEWEST_CALLS:
            return
        holding.renewal = asyncio.create_task(self._renewed(key_digest, holding))

    async def _renewed(self, key_digest: bytes, holding: _Holding) -> None:
        try:
            calls = min(holding.wanted, _share(await self._limits.acquire(key_digest, 0)))
            if calls >= _FEWEST_CALLS and not self._closed:
                self._hold(holding, *await self._limits.lease(key_digest, calls))
        except UnavailableError as error:
            # Whoever asks for the next call is told.
            structlog.get_logger().debug("no lease", why=error.message)
        finally:
            holding.renewal = None

    def _hold(self, holding: _Holding, result: pb.LeaseResult, sent: float) -> None:
        if result.decision != pb.DECISION_ALLOWED:
            return
        until = sent + result.lifetime.ToTimedelta().total_seconds()
        lease = _Lease(result.lease_id, result.calls, until)
        lease.end = asyncio.get_running_loop().call_at(until, self._end, holding, lease)
        holding.leases.append(lease)

    def _drop(self, holding: _Holding) -> None:
        for lease in list(holding.leases):
            self._end(holding, lease)

    def _end(self, holding: _Holding, lease: _Lease) -> None:
        holding.leases.remove(lease)
        if lease.end is not None:
            lease.end.cancel()
        returning = asyncio.create_task(self._give_back(lease))
        self._returns.add(returning)
        returning.add_done_callback(self._returns.discard)

    async def _give_back(self, lease: _Lease) -> None:
        try:
            await self._limits.give_back(lease.lease_id, lease.left)
        except UnavailableError as error:
            # They count as used, until the lease has ended over there too.
            structlog.get_logger().debug("lease not given back", why=error.message)


@asynccontextmanager
async def open_leased_limits(
    limits: CoalescedLimits, resolve: Resolve
) -> AsyncIterator[LeasedLimits]:
    """Yields limits that lease; gives back what is left at the end."""
    leased = LeasedLimits(limits, resolve)
    try:
        yield leased
    finally:
        await leased.aclose()


def _share(result: pb.AcquireResult) -> int:
    """Returns how many calls may be leased without anyone coming short for it."""
    if result.decision != pb.DECISION_ALLOWED:
        return 0
    left = result.burst_remaining
    if result.HasField("quota"):
        left = min(left, result.quota_remaining)
    return left // _SHARE


_ALLOWED: Final = pb.AcquireResult(decision=pb.DECISION_ALLOWED)
