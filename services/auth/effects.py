"""Since when a revocation holds everywhere (P-37)."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from services.auth.domain import Effect, Watcher
from services.auth.watcher_store import ACKNOWLEDGEMENTS_CHANNEL, read_watchers
from services.shared.errors import UnavailableError
from services.shared.postgres import Database, Signal

# Between two looks when nothing is announced: a lease that runs out announces nothing.
_POLL_SECONDS = 0.05
_IDLE_SECONDS = 60.0
# Beside a lease: until that long the database has answered, or is away.
_SLACK_SECONDS = 3.0


@dataclass(eq=False, slots=True)
class _Awaited:
    """One revocation, and the leases that were running when it was looked at first."""

    sequence: int
    known: asyncio.Future[Effect]
    leases: dict[tuple[str, str], datetime] | None = None

    def look(self, at: datetime, watchers: Iterable[Watcher]) -> Effect | None:
        """Returns the effect if it is there at the time `at`.

        Whoever is leased trust after the revocation was told of it in the same answer, so only the
        leases from before matter; and each of those ends by itself.
        """
        now = {(each.peer, each.watcher_id): each for each in watchers}
        if self.leases is None:
            self.leases = {
                name: each.leased_until for name, each in now.items() if each.leased_until > at
            }
        heard = {
            name for name in self.leases if name in now and now[name].acknowledged >= self.sequence
        }
        if any(at <= until for name, until in self.leases.items() if name not in heard):
            return None
        return Effect(at, acknowledged=len(heard), fenced=len(self.leases) - len(heard))


@dataclass(slots=True)
class Effects:
    """Waits for revocations to hold everywhere; one reader for however many are awaited."""

    database: Database
    lease: timedelta
    _awaited: set[_Awaited] = field(default_factory=set)
    _announced: Signal = field(default_factory=Signal)

    async def of(self, sequence: int) -> Effect:
        """Returns once no replica trusts what it remembered before the committed revocation.

        Raises:
            UnavailableError: that cannot be found out now; asking again is safe.
        """
        awaited = _Awaited(sequence, asyncio.get_running_loop().create_future())
        self._awaited.add(awaited)
        self._announced.set()
        try:
            async with asyncio.timeout(self.lease.total_seconds() + _SLACK_SECONDS):
                return await awaited.known
        except TimeoutError:
            raise UnavailableError(
                "it is done, but not known to hold everywhere yet; repeat the call to wait again"
            ) from None
        finally:
            self._awaited.discard(awaited)

    async def run(self) -> None:
        """Looks for ever, while something is awaited."""
        async with self.database.listen(ACKNOWLEDGEMENTS_CHANNEL) as self._announced:
            while True:
                await self._announced.wait(_POLL_SECONDS if self._awaited else _IDLE_SECONDS)
                if self._awaited:
                    await self._look()

    async def _look(self) -> None:
        # Taken before the look begins: what is awaited later is looked at next time.
        awaited = list(self._awaited)
        try:
            async with self.database.service() as connection:
                at, watchers = await read_watchers(connection)
        except UnavailableError:
            structlog.get_logger().warning("watchers cannot be read")
        else:
            _settle(awaited, at, watchers)


def _settle(awaited: Iterable[_Awaited], at: datetime, watchers: Iterable[Watcher]) -> None:
    for each in awaited:
        effect = each.look(at, watchers)
        if effect is not None and not each.known.done():
            each.known.set_result(effect)
