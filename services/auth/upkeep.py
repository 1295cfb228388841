"""Forgetting what no living watcher needs."""

import asyncio

import structlog

from services.auth.erasure_store import forget_expired_keys
from services.auth.revocation_store import purge_revocations
from services.auth.watcher_store import purge_watchers
from services.shared.errors import UnavailableError
from services.shared.postgres import Database

_PERIOD_SECONDS = 60.0
# Far longer than any lease; who has heard nothing for so long forgets everything.
_KEPT_SECONDS = 600.0


async def keep_tidy(database: Database) -> None:
    """Deletes old revocations, dead watchers and the last keys of erased tenants for ever."""
    while True:
        try:
            async with database.service() as connection:
                await purge_revocations(connection, _KEPT_SECONDS)
                await purge_watchers(connection, _KEPT_SECONDS)
                await forget_expired_keys(connection)
        except UnavailableError:
            structlog.get_logger().warning("what is of no use any more cannot be deleted")
        await asyncio.sleep(_PERIOD_SECONDS)
