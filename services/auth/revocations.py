"""The feed of revocations: one reader of the table, any number of watchers."""

import asyncio
from collections.abc import AsyncIterator

import structlog

from services.auth import revocation_store
from services.auth.domain import Revocation
from services.shared.errors import UnavailableError
from services.shared.postgres import Database

# Watchers begin a stream anew when several beats are missing.
HEARTBEAT_SECONDS = 0.25
_MOST_UNREAD = 1_000


class RevocationFeed:
    """Reads new revocations as they are announced and passes them to every watcher.

    It only hurries: whether a watcher may trust what it remembers, its lease says. It beats after
    the table was read, so that a watcher of an auth that has lost its database looks for another.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sequence: int | None = None
        self._watchers: set[asyncio.Queue[Revocation]] = set()

    async def run(self) -> None:
        """Follows the table for ever."""
        async with self._database.listen(revocation_store.REVOCATIONS_CHANNEL) as announced:
            while True:
                try:
                    await self._read()
                except UnavailableError:
                    structlog.get_logger().warning("revocations cannot be read")
                await announced.wait(HEARTBEAT_SECONDS)

    async def watch(self) -> AsyncIterator[Revocation]:
        """Yields each revocation from now on, and between them heartbeats without keys."""
        queue: asyncio.Queue[Revocation] = asyncio.Queue(_MOST_UNREAD)
        self._watchers.add(queue)
        try:
            while queue in self._watchers:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    async def _read(self) -> None:
        async with self._database.service() as connection:
            if self._sequence is None:
                self._sequence = await revocation_store.last_revocation(connection)
            revocations = await revocation_store.revocations_after(connection, self._sequence)
        for revocation in revocations:
            self._sequence = revocation.sequence
            self._publish(revocation)
        if not revocations:
            self._publish(Revocation(self._sequence, ()))

    def _publish(self, revocation: Revocation) -> None:
        for queue in list(self._watchers):
            if queue.full():
                # Too slow to be told: it will notice the end of the stream and begin anew.
                self._watchers.discard(queue)
            else:
                queue.put_nowait(revocation)
