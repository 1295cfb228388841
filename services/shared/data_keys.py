"""The data keys of a service's tenants: made when first needed, unwrapped when used."""

import asyncio
import time
from collections import OrderedDict

from services.shared import data_key_store as store
from services.shared.crypto import (
    KeyBinding,
    KeyEncryptionKeys,
    TenantCipher,
    WrappedKey,
    new_data_key,
)
from services.shared.ids import TenantId
from services.shared.postgres import Database

# A data key that was destroyed may be used by another process for so long; what it opened then was
# erased with it.
REMEMBERED_SECONDS = 60.0
_MOST_REMEMBERED = 10_000


class DataKeys:
    """Ciphers by tenant, over the table `data_keys` of the service."""

    def __init__(self, database: Database, keks: KeyEncryptionKeys) -> None:
        self._database = database
        self._keks = keks
        self._ciphers: OrderedDict[TenantId, tuple[float, TenantCipher]] = OrderedDict()
        self._flights: dict[TenantId, asyncio.Lock] = {}

    async def cipher(self, tenant: TenantId) -> TenantCipher:
        """Returns the tenant's cipher; its data key is made the first time.

        Raises:
            UnreadableError: the data key cannot be unwrapped.
            UnavailableError: the database, or who holds the key-encryption keys, is away.
        """
        return await self.existing(tenant) or await self._made(tenant)

    async def existing(self, tenant: TenantId) -> TenantCipher | None:
        """Returns the tenant's cipher; None when it has no data key, or none any more.

        Raises:
            UnreadableError: the data key cannot be unwrapped.
            UnavailableError: the database, or who holds the key-encryption keys, is away.
        """
        if (known := self._remembered(tenant)) is not None:
            return known
        lock = self._flights.setdefault(tenant, asyncio.Lock())
        try:
            async with lock:
                return self._remembered(tenant) or await self._read(tenant)
        finally:
            if not lock.locked():
                self._flights.pop(tenant, None)

    def forget(self, tenant: TenantId) -> None:
        """Drops what is remembered of the tenant."""
        self._ciphers.pop(tenant, None)

    def _remembered(self, tenant: TenantId) -> TenantCipher | None:
        until, cipher = self._ciphers.get(tenant, (0.0, None))
        return cipher if time.monotonic() < until else None

    async def _read(self, tenant: TenantId) -> TenantCipher | None:
        async with self._database.tenant(tenant) as connection:
            wrapped = await store.get_data_key(connection, tenant)
        return None if wrapped is None else await self._unwrapped(tenant, wrapped)

    async def _made(self, tenant: TenantId) -> TenantCipher:
        data_key_id, data_key = new_data_key()
        kek_id, wrapped = await self._keks.wrap(data_key, KeyBinding(tenant, data_key_id))
        async with self._database.tenant(tenant) as connection:
            # Of two that make one at once, the first one's stands.
            kept = await store.put_data_key(
                connection, tenant, WrappedKey(data_key_id, kek_id, wrapped)
            )
        return await self._unwrapped(tenant, kept)

    async def _unwrapped(self, tenant: TenantId, key: WrappedKey) -> TenantCipher:
        data_key = await self._keks.unwrap(
            key.kek_id, key.wrapped, KeyBinding(tenant, key.data_key_id)
        )
        cipher = TenantCipher(tenant, key.data_key_id, data_key)
        self._ciphers[tenant] = (time.monotonic() + REMEMBERED_SECONDS, cipher)
        self._ciphers.move_to_end(tenant)
        while len(self._ciphers) > _MOST_REMEMBERED:
            self._ciphers.popitem(last=False)
        return cipher
