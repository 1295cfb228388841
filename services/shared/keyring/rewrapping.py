"""Wrapping data keys anew under the key that a rotation named, while everything else goes on.

Every replica does it, a batch a time: a batch is held while it is wrapped, so that no two replicas
do the same one, and written as a whole. Who dies leaves it to the others. The data keys themselves
stay as they are, and so does what they sealed.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from services.shared.crypto import KekId, KeyEncryptionKeys, UnreadableError, WrappedKey
from services.shared.errors import UnavailableError
from services.shared.keyring import store
from services.shared.keyring.store import TenantKey
from services.shared.postgres import Connection, Database

_BATCH: Final = 32
# Calls to the holder under way at once.
_FLIGHTS: Final = 4
_PERIOD_SECONDS: Final = 5.0


class Rewrapping:
    """The job of one replica."""

    def __init__(self, database: Database, keks: KeyEncryptionKeys) -> None:
        self._database = database
        self._keks = keks
        self._flights = asyncio.Semaphore(_FLIGHTS)
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Has it look now, and not only in a while."""
        self._woken.set()

    async def run(self) -> None:
        """Wraps what there is to wrap, for ever."""
        while True:
            self._woken.clear()
            if not await self._batch_tried():
                await self._pause()

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_PERIOD_SECONDS):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _batch_tried(self) -> bool:
        log = structlog.get_logger()
        try:
            return await self.batch()
        except UnavailableError as error:
            log.warning("data keys wait to be wrapped", problem=error.message)
        except Exception:
            # Whatever it was, the next one may do better: a rotation must not end half-way.
            log.exception("data keys could not be wrapped")
        return False

    async def batch(self) -> bool:
        """Wraps some data keys anew; returns whether there were any.

        Raises:
            UnavailableError: the database or the holder is away; nothing was changed.
        """
        async with self._database.service() as connection:
            kek = await store.chosen(connection)
            # A replica that reads an older keyring would wrap back what others have wrapped.
            if kek is None or kek != await self._keks.current():
                return False
            held = await store.hold_batch(connection, kek, _BATCH)
            if held:
                await self._wrap(connection, kek, held)
        return bool(held)

    async def _wrap(self, connection: Connection, kek: KekId, held: Sequence[TenantKey]) -> None:
        wrapped = [key for key in await self._all_wrapped(kek, held) if key is not None]
        done = {key.tenant for key in wrapped}
        lost = [one for one in held if one.tenant not in done]
        await store.put_wrapped(connection, kek, wrapped)
        await store.give_up(connection, [one.tenant for one in lost])
        log = structlog.get_logger()
        log.info("data keys wrapped anew", kek_id=kek, data_keys=len(wrapped))
        for one in lost:
            log.error(
                "a data key cannot be unwrapped",
                data_key_id=one.key.data_key_id,
                kek_id=one.key.kek_id,
            )

    async def _all_wrapped(
        self, kek: KekId, held: Sequence[TenantKey]
    ) -> Sequence[TenantKey | None]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._wrapped(kek, one)) for one in held]
        except ExceptionGroup as group_error:
            # The first one ended the others, which would fail alike.
            raise group_error.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _wrapped(self, kek: KekId, one: TenantKey) -> TenantKey | None:
        """Returns the data key under `kek`; None when it cannot be unwrapped."""
        async with self._flights:
            try:
                data_key = await self._keks.unwrap(one.key.kek_id, one.key.wrapped, one.bound)
            except UnreadableError:
                return None
            under, wrapped = await self._keks.wrap(data_key, one.bound)
        if under != kek:
            raise UnavailableError("the current key-encryption key has changed meanwhile")
        return TenantKey(one.tenant, WrappedKey(one.key.data_key_id, kek, wrapped))
