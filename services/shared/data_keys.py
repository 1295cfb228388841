"""The data keys of a service's tenants: made when first needed, unwrapped when used."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

import structlog

from services.shared import data_key_store as store
from services.shared.crypto import (
    KeyBinding,
    KeyEncryptionKeys,
    TenantCipher,
    UnknownKekError,
    WrappedKey,
    new_data_key,
)
from services.shared.errors import UnavailableError
from services.shared.ids import TenantId
from services.shared.postgres import Database

# A data key that was destroyed may be used by another process for so long; what it opened then was
# erased with it.
REMEMBERED_SECONDS = 60.0
_MOST_REMEMBERED = 10_000
# How often the current key-encryption key may end before a new data key is kept.
_TRIES = 3


class DataKeys:
    """Ciphers by tenant, over the table `data_keys` of the service."""

    def __init__(self, database: Database, keks: KeyEncryptionKeys) -> None:
        self._database = database
        self._keks = keks
        self._ciphers: OrderedDict[TenantId, tuple[float, TenantCipher]] = OrderedDict()
        # While someone reads or makes the tenant's key, others wait for it.
        self._flights: WeakValueDictionary[TenantId, asyncio.Lock] = WeakValueDictionary()

    async def cipher(self, tenant: TenantId) -> TenantCipher:
        """Returns the tenant's cipher; its data key is made the first time.

        Raises:
            UnreadableError: the data key cannot be unwrapped.
            UnavailableError: the database, or who holds the key-encryption keys, is away, or does
                not have the one that is needed.
        """
        if (known := self._remembered(tenant)) is not None:
            return known
        async with self._alone(tenant):
            found = self._remembered(tenant) or await self._read(tenant)
            return found or await self._made(tenant)

    async def existing(self, tenant: TenantId) -> TenantCipher | None:
        """Returns the tenant's cipher; None when it has no data key, or none any more.

        Raises:
            UnreadableError: the data key cannot be unwrapped.
            UnavailableError: the database, or who holds the key-encryption keys, is away, or does
                not have the one that is needed.
        """
        if (known := self._remembered(tenant)) is not None:
            return known
        async with self._alone(tenant):
            return self._remembered(tenant) or await self._read(tenant)

    def forget(self, tenant: TenantId) -> None:
        """Drops what is remembered of the tenant."""
        self._ciphers.pop(tenant, None)

    @asynccontextmanager
    async def _alone(self, tenant: TenantId) -> AsyncIterator[None]:
        async with self._flights.setdefault(tenant, asyncio.Lock()):
            yield

    def _remembered(self, tenant: TenantId) -> TenantCipher | None:
        until, cipher = self._ciphers.get(tenant, (0.0, None))
        return cipher if time.monotonic() < until else None

    async def _read(self, tenant: TenantId) -> TenantCipher | None:
        async with self._database.tenant(tenant) as connection:
            wrapped = await store.get_data_key(connection, tenant)
        return None if wrapped is None else await self._unwrapped(tenant, wrapped)

    async def _made(self, tenant: TenantId) -> TenantCipher:
        data_key_id, data_key = new_data_key()
        bound = KeyBinding(tenant, data_key_id)
        for _ in range(_TRIES):
            kek_id, wrapped = await self._keks.wrap(data_key, bound)
            try:
                kept = await self._kept(tenant, WrappedKey(data_key_id, kek_id, wrapped))
            except store.KekEndedError:
                # It was destroyed since; the next one is under what is current by now.
                continue
            return await self._unwrapped(tenant, kept)
        raise UnavailableError("the current key-encryption key is destroyed")

    async def _kept(self, tenant: TenantId, key: WrappedKey) -> WrappedKey:
        """Returns the tenant's data key: of two that are made at once, the first."""
        async with self._database.tenant(tenant) as connection:
            return await store.put_data_key(connection, tenant, key)

    async def _unwrapped(self, tenant: TenantId, key: WrappedKey) -> TenantCipher:
        bound = KeyBinding(tenant, key.data_key_id)
        try:
            data_key = await self._keks.unwrap(key.kek_id, key.wrapped, bound)
        except UnknownKekError as error:
            # It may come yet, as to a replica that reads an older keyring: nothing is lost for
            # good because of it.
            structlog.get_logger().error("a key-encryption key is missing", kek_id=key.kek_id)
            raise UnavailableError("a key-encryption key is not at hand") from error
        cipher = TenantCipher(tenant, key.data_key_id, data_key)
        self._ciphers[tenant] = (time.monotonic() + REMEMBERED_SECONDS, cipher)
        self._ciphers.move_to_end(tenant)
        while len(self._ciphers) > _MOST_REMEMBERED:
            self._ciphers.popitem(last=False)
        return cipher
