"""Replicas over one database, each with a hand on its key-encryption keys."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.shared.crypto import KekId, KeyBinding, KeyEncryptionKeys, Place
from services.shared.data_keys import DataKeys
from services.shared.ids import TenantId
from services.shared.keyring.keyring import Keyring
from services.shared.keyring.rewrapping import Rewrapping
from services.shared.postgres import Database
from tests.databases import SERVICES

PLACE = Place("webhooks", "ten_0", "sealed_secret")
PATIENCE_SECONDS = 30.0
MIGRATIONS = SERVICES / "credentials" / "migrations"


@dataclass
class WatchedKeys:
    """A holder with a hand on it: counts what is unwrapped, stops, fails, or lags behind."""

    keys: KeyEncryptionKeys
    holder: str = "file"
    unwrapped: list[str] = field(default_factory=list)
    fails: BaseException | None = None
    # Fails only after so many.
    after: int = 0
    gate: asyncio.Event | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    # What a process that lags behind takes for the current key.
    current_seen: KekId | None = None

    async def current(self) -> KekId:
        return self.current_seen or await self.keys.current()

    async def known(self) -> Sequence[KekId]:
        return await self.keys.known()

    async def wrap(self, data_key: bytes, bound: KeyBinding) -> tuple[KekId, bytes]:
        wrapped = await self.keys.wrap(data_key, bound)
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        return wrapped

    async def unwrap(self, kek_id: KekId, wrapped: bytes, bound: KeyBinding) -> bytes:
        self.unwrapped.append(bound.tenant)
        if self.fails is not None and len(self.unwrapped) > self.after:
            raise self.fails
        return await self.keys.unwrap(kek_id, wrapped, bound)

    async def create(self) -> KekId:
        return await self.keys.create()

    async def destroy(self, kek_id: KekId) -> None:
        if self.fails is not None:
            raise self.fails
        await self.keys.destroy(kek_id)


@dataclass(frozen=True)
class Replica:
    """One process over the shared database, with its own holder."""

    database: Database
    keks: WatchedKeys

    @property
    def rewrapping(self) -> Rewrapping:
        return Rewrapping(self.database, self.keks)

    @property
    def keyring(self) -> Keyring:
        return Keyring(self.database, self.keks, self.rewrapping)

    @property
    def data_keys(self) -> DataKeys:
        """Data keys as a process sees them that remembers none yet."""
        return DataKeys(self.database, self.keks)

    async def wrap_all(self) -> None:
        """Returns when nothing is left that this replica wraps."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.rewrapping.batch():
                pass


async def sealed_for(replica: Replica, tenants: Sequence[TenantId]) -> dict[TenantId, bytes]:
    data_keys = replica.data_keys
    return {
        tenant: (await data_keys.cipher(tenant)).seal(PLACE, f"secret of {tenant}")
        for tenant in tenants
    }


async def assert_readable(replica: Replica, sealed: dict[TenantId, bytes]) -> None:
    data_keys = replica.data_keys
    for tenant, text in sealed.items():
        cipher = await data_keys.existing(tenant)
        assert cipher is not None
        assert cipher.open(PLACE, text) == f"secret of {tenant}"


async def wrapped_under(database: Database) -> dict[str, list[str]]:
    async with database.service() as connection:
        rows = await connection.fetch("SELECT kek_id, tenant_id FROM data_keys ORDER BY tenant_id")
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["kek_id"], []).append(row["tenant_id"])
    return found


async def forget_all(database: Database) -> None:
    """Deletes every data key and what refers to it."""
    async with database.service() as connection:
        for table in ("webhooks", "data_keys", "key_encryption_keys"):
            await connection.execute(f"DELETE FROM {table}")
