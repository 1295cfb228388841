"""Who waits for an operation to change: one subscription to the database for all of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.provisioner.operation_store import OPERATIONS_CHANNEL
from services.shared.background import background
from services.shared.postgres import Database, Signal

# A notification can be lost with the connection it would have come by.
_POLL_SECONDS = 1.0


class Changes:
    """Tells all who wait that some operation has changed, or may have."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    @property
    def next(self) -> asyncio.Event:
        """The event of the next change; take it before looking, so that none is missed."""
        return self._next

    def announce(self) -> None:
        """Wakes everyone who waits."""
        current, self._next = self._next, asyncio.Event()
        current.set()

    async def follow(self, signal: Signal) -> None:
        """Announces each signal, and once a second without one, for ever."""
        while True:
            await signal.wait(_POLL_SECONDS)
            self.announce()


@asynccontextmanager
async def open_changes(database: Database) -> AsyncIterator[Changes]:
    """Yields the changes of operations, as the database tells them."""
    changes = Changes()
    async with (
        database.listen(OPERATIONS_CHANNEL) as signal,
        background(changes.follow(signal)),
    ):
        yield changes
