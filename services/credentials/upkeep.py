"""Work beside the vends: tokens in use are refreshed ahead of their end, old rows deleted."""

import asyncio
import random
from datetime import timedelta

import structlog

from services.credentials.refresh import store
from services.credentials.refresh.flights import Refreshes
from services.credentials.refresh.store import Due
from services.credentials.refresh.terms import Want
from services.shared.errors import UnavailableError
from services.shared.postgres import Database

_PERIOD_SECONDS = 5.0
_IN_USE = timedelta(hours=1)
# So many at once: vends that wait for a refresh want places, too.
_MOST_AHEAD = 8
_PURGE_SECONDS = 60.0
_MOST_PURGED = 500


async def refresh_ahead(database: Database, refreshes: Refreshes) -> None:
    """Refreshes what is in use and ends soon, for ever, beside other replicas."""
    while True:
        await asyncio.sleep(_PERIOD_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 spreads
        await refresh_due(database, refreshes)


async def refresh_due(database: Database, refreshes: Refreshes) -> None:
    """Refreshes some of what is due now; what fails is left to its next vend."""
    try:
        async with database.service() as db:
            due = await store.list_due(db, _IN_USE, _MOST_AHEAD)
    except UnavailableError:
        structlog.get_logger().warning("what is due for a refresh cannot be read")
        return
    await asyncio.gather(*(refreshes.ahead(_want(each), each.least) for each in due))


async def forget_old(database: Database) -> None:
    """Deletes authorizations and narrowed tokens that ended a day ago, for ever."""
    while True:
        await asyncio.sleep(_PURGE_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 spreads
        try:
            async with database.service() as db:
                await store.purge_authorizations(db, _MOST_PURGED)
                await store.purge_narrowed(db, _MOST_PURGED)
        except UnavailableError:
            structlog.get_logger().warning("what is old cannot be deleted")


def _want(due: Due) -> Want:
    return Want(due.tenant_id, due.connection_id, due.provider, due.scope_key)
