"""Erasing a tenant: stopped, revoked at its providers, erased with its data key; in this order.

First it is written down that the tenant is being erased: from then on the database itself lets
nothing come to be of it, whatever keys still live, and nothing is lent any more. What became of
each grant is written before anything is erased, so that a crash loses no outcome; the rows go in
one transaction, and with them the data key, so that copies cannot be read either.
"""

import asyncio
from collections.abc import Sequence
from contextvars import Context

import structlog

from services.credentials import erasure_store as store
from services.credentials.deletion import Revoker
from services.credentials.erasure_store import Receipt
from services.shared.data_keys import DataKeys
from services.shared.errors import BulkheadError, UnavailableError
from services.shared.ids import ConnectionId, TenantId
from services.shared.postgres import Database

# Providers asked at once for one tenant.
_MOST_AT_ONCE = 4


class Erasure:
    """Erases tenants; each goes on when the caller's time is up, and is asked about again."""

    def __init__(self, database: Database, data_keys: DataKeys, revoker: Revoker) -> None:
        self._database = database
        self._data_keys = data_keys
        self._revoker = revoker
        self._under_way: dict[TenantId, asyncio.Task[Receipt]] = {}

    async def erase(self, tenant: TenantId) -> Receipt:
        """Returns what was erased; asked again, the same.

        Raises:
            UnavailableError: a provider could not be asked for now, or the database is away; what
                is done stays done, and asking again goes on from there.
        """
        running = self._under_way.get(tenant)
        if running is None:
            # In a context of its own: the caller's deadline and key are the caller's.
            running = Context().run(asyncio.create_task, self._erase(tenant))
            self._under_way[tenant] = running
            running.add_done_callback(lambda task: self._ended(tenant, task))
        return await asyncio.shield(running)

    async def close(self) -> None:
        """Ends what is under way; it is asked for again elsewhere."""
        running = list(self._under_way.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, tenant: TenantId, task: asyncio.Task[Receipt]) -> None:
        self._under_way.pop(tenant, None)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            structlog.get_logger().warning(
                "erasure to be asked for again", tenant_id=tenant, error=type(error).__name__
            )

    async def _erase(self, tenant: TenantId) -> Receipt:
        async with self._database.tenant(tenant) as connection:
            if (done := await store.begin(connection, tenant)) is not None:
                return done
            await store.stop(connection, tenant)
            unasked = await store.unasked(connection, tenant)
        await self._revoke(tenant, unasked)
        async with self._database.tenant(tenant) as connection:
            receipt = await store.finish(connection, tenant)
        if receipt is None:
            raise UnavailableError("a provider was not asked yet")
        self._data_keys.forget(tenant)
        return receipt

    async def _revoke(self, tenant: TenantId, connections: Sequence[ConnectionId]) -> None:
        """Asks the providers, a few at once; one that cannot be asked now keeps none from it."""
        room = asyncio.Semaphore(_MOST_AT_ONCE)

        async def revoke(connection: ConnectionId) -> None:
            async with room:
                await self._revoker.revoke_grant(tenant, connection)

        outcomes = await asyncio.gather(
            *(revoke(each) for each in connections), return_exceptions=True
        )
        failures = [each for each in outcomes if isinstance(each, BaseException)]
        for failure in failures:
            if not isinstance(failure, BulkheadError):
                raise failure
        if failures:
            raise UnavailableError("a provider could not be asked yet") from failures[0]
