"""How many calls may be under way here, so that one slow provider leaves others theirs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from weakref import WeakValueDictionary

from services.credentials.refusals import away
from services.shared.errors import UnavailableError
from services.shared.ids import TenantId

# How long a caller waits for a place; a refresh, which many wait for, waits longer.
PATIENCE = timedelta(seconds=5)
_AGAIN = timedelta(seconds=1)


class Places:
    """Places for calls: for one provider half of them at most, for one tenant a quarter (P-38).

    A provider that hangs keeps each of its places until the time-out; so would a host that a
    tenant names as its own.
    """

    def __init__(self, places: int) -> None:
        self._all = asyncio.Semaphore(places)
        self._of_one_provider = max(1, places // 2)
        self._of_one_tenant = max(1, places // 4)
        self._held: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def take(
        self, tenant: TenantId, provider: str, patience: timedelta
    ) -> AsyncIterator[None]:
        """Keeps a place until the block is left.

        Raises:
            UnavailableError: there was none for longer than `patience`.
        """
        # The narrower first: who waits for it keeps nothing that others could use.
        wanted = (
            self._share(f"tenant {tenant}", self._of_one_tenant),
            self._share(f"provider {provider}", self._of_one_provider),
            self._all,
        )
        taken: list[asyncio.Semaphore] = []
        try:
            async with asyncio.timeout(patience.total_seconds()):
                for semaphore in wanted:
                    await semaphore.acquire()
                    taken.append(semaphore)
        except TimeoutError as error:
            _give_back(taken)
            raise away(
                _AGAIN, "too many calls to this provider are under way; try again"
            ) from error
        except BaseException:
            _give_back(taken)
            raise
        try:
            yield
        finally:
            _give_back(taken)

    def _share(self, name: str, most: int) -> asyncio.Semaphore:
        return self._held.setdefault(name, asyncio.Semaphore(most))


def full() -> UnavailableError:
    """Returns what is told to whoever would have to wait for a place for too long."""
    return away(_AGAIN, "too many calls to this provider are under way; try again")


def _give_back(taken: list[asyncio.Semaphore]) -> None:
    for semaphore in reversed(taken):
        semaphore.release()
