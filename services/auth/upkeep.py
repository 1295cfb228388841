"""Forgetting what no living watcher needs."""

import asyncio

import structlog

from services.auth.revocation_store import purge_revocations
from services.auth.watcher_store import purge_watchers
from services.shared.errors import UnavailableError
from services.shared.postgres import Database

_PERIOD_SECONDS = 60.0
# Far longer than any lease; who has heard nothing for so long forgets everything.
_KEPT_SECONDS = 600.0


async def keep_tidy(database: Database) -> None:
    """Deletes old revocations and dead watchers for ever."""
    while True:
        try:
            async with database.service() as connection:
                await purge_revocations(connection, _KEPT_SECONDS)
                await purge_watchers(connection, _KEPT_SECONDS)
        except UnavailableError:
            structlog.get_logger().warning("old revocations cannot be deleted")
        await asyncio.sleep(_PERIOD_SECONDS)
