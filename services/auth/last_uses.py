"""When keys were last used: gathered in memory, written by the minute."""

import asyncio
from collections.abc import Iterable
from datetime import datetime

import structlog

from services.auth.resolution_store import write_last_uses
from services.shared.clock import Clock
from services.shared.errors import UnavailableError
from services.shared.ids import KeyId
from services.shared.postgres import Database

_PERIOD_SECONDS = 2.0
# What a database that is away may cost: beyond it uses are not noted.
_MOST_NOTED = 100_000


class LastUses:
    """Notes uses of keys; one statement every few seconds writes them all."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._minutes: dict[KeyId, datetime] = {}

    def note(self, key_ids: Iterable[KeyId]) -> None:
        """Notes that the keys were used this minute."""
        minute = self._clock().replace(second=0, microsecond=0)
        for key_id in key_ids:
            if len(self._minutes) < _MOST_NOTED:
                self._minutes[key_id] = minute

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
        if not self._minutes:
            return
        minutes, self._minutes = self._minutes, {}
        try:
            async with self._database.service() as connection:
                await write_last_uses(connection, minutes)
        except UnavailableError:
            structlog.get_logger().warning("last uses cannot be written")
            self._minutes = minutes | self._minutes
