"""Which tokens were vended when: gathered in memory, written by the minute."""

import asyncio

import structlog

from services.credentials.vend_store import write_last_vends
from services.shared.errors import UnavailableError
from services.shared.ids import ConnectionId
from services.shared.postgres import Database

_PERIOD_SECONDS = 2.0
# What a database that is away may cost: beyond it vends are not noted.
_MOST_NOTED = 100_000


class LastVends:
    """Notes vends; one transaction every few seconds writes them all."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: set[tuple[ConnectionId, str]] = set()

    def note(self, connection: ConnectionId, scope_key: str) -> None:
        """Notes that the token was vended just now."""
        if len(self._noted) < _MOST_NOTED:
            self._noted.add((connection, scope_key))

    async def run(self) -> None:
        """Writes what was noted for ever, and once more when it is cancelled."""
        try:
            while True:
                await asyncio.sleep(_PERIOD_SECONDS)
                await self.write()
        finally:
            await self.write()

    async def write(self) -> None:
        """Writes what was noted; what cannot be written now is kept for the next time."""
        if not self._noted:
            return
        noted, self._noted = self._noted, set()
        try:
            async with self._database.service() as db:
                await write_last_vends(db, sorted(noted))
        except UnavailableError:
            structlog.get_logger().warning("last vends cannot be written")
            self._noted |= noted
