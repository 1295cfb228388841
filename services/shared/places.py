"""Places for what is done at once, of which nobody has more than a share (P-38)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary


class Shares:
    """Lets each holder do at most `most` things at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    def of(self, holder: str) -> asyncio.Semaphore:
        """Returns what to hold while doing one; whoever waits first is first."""
        return self._held.setdefault(holder, asyncio.Semaphore(self._most))


class Places:
    """So many places, and half of them at most for one holder."""

    def __init__(self, places: int) -> None:
        self._all = asyncio.Semaphore(places)
        self._shares = Shares(max(1, places // 2))

    @asynccontextmanager
    async def take(self, holder: str) -> AsyncIterator[None]:
        """Keeps a place until the block is left; waits for it for as long as that takes."""
        # The narrower first: who waits for it keeps nothing that others could use.
        async with self._shares.of(holder), self._all:
            yield
