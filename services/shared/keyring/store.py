"""SQL of the keyring: which data keys are under which key-encryption key; one function a query.

Everything here runs in a service transaction: it is about the keys of all tenants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

import asyncpg

from services.shared.crypto import DataKeyId, KekId, KeyBinding, WrappedKey
from services.shared.ids import TenantId
from services.shared.postgres import Connection

# "keyring" in ASCII: the lock under which a rotation decides.
_ROTATION_LOCK: Final = 0x6B657972696E67
# Before a data key that could not be unwrapped is tried again.
_AGAIN_SECONDS: Final = 600.0


class KekInUseError(Exception):
    """Data keys are under it."""


class Standing(Enum):
    """Whether data keys may be under a key-encryption key."""

    NEVER_USED = auto()
    USABLE = auto()
    RETIRED = auto()


@dataclass(frozen=True, slots=True)
class Usage:
    """How many data keys are under a key-encryption key."""

    data_keys: int
    # Of these, those that could not be unwrapped to be wrapped anew.
    unreadable: int


@dataclass(frozen=True, slots=True)
class TenantKey:
    """A tenant's data key as it is stored."""

    tenant: TenantId
    key: WrappedKey

    @property
    def bound(self) -> KeyBinding:
        """Whose it is, and which."""
        return KeyBinding(self.tenant, self.key.data_key_id)


async def hold_rotation(connection: Connection) -> None:
    """Waits until no one else decides about a rotation; until the commit no one else will."""
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _ROTATION_LOCK)


async def usage(connection: Connection) -> dict[KekId, Usage]:
    """Returns how many data keys are under each key-encryption key that has any."""
    rows = await connection.fetch(
        "SELECT kek_id, count(*) AS data_keys, count(unreadable_at) AS unreadable"
        " FROM data_keys GROUP BY kek_id ORDER BY kek_id"
    )
    return {KekId(row["kek_id"]): Usage(row["data_keys"], row["unreadable"]) for row in rows}


async def choose(connection: Connection, kek: KekId) -> None:
    """Makes it the key that data keys are wrapped under anew, those that were given up too."""
    await connection.execute(
        "INSERT INTO key_encryption_keys (kek_id, chosen_at) VALUES ($1, clock_timestamp())"
        " ON CONFLICT (kek_id) DO UPDATE SET chosen_at = clock_timestamp()",
        kek,
    )
    await connection.execute(
        "UPDATE data_keys SET unreadable_at = NULL WHERE unreadable_at IS NOT NULL"
    )


async def chosen(connection: Connection) -> KekId | None:
    """Returns the key that the last rotation named."""
    kek = await connection.fetchval(
        "SELECT kek_id FROM key_encryption_keys WHERE chosen_at IS NOT NULL"
        " ORDER BY chosen_at DESC LIMIT 1"
    )
    return KekId(kek) if kek is not None else None


async def hold_batch(connection: Connection, kek: KekId, most: int) -> list[TenantKey]:
    """Returns data keys that are not under `kek`, and holds them; none that another one holds.

    Nobody waits for them but who destroys them: they can be read, and rows that name them written.
    """
    rows = await connection.fetch(
        "SELECT tenant_id, data_key_id, kek_id, wrapped_key FROM data_keys WHERE kek_id <> $1"
        " AND (unreadable_at IS NULL OR unreadable_at < now() - make_interval(secs => $3))"
        " ORDER BY tenant_id LIMIT $2 FOR NO KEY UPDATE SKIP LOCKED",
        kek,
        most,
        _AGAIN_SECONDS,
    )
    return [_tenant_key(row) for row in rows]


async def put_wrapped(connection: Connection, kek: KekId, keys: Sequence[TenantKey]) -> None:
    """Keeps data keys as they are wrapped now, all of them under `kek`."""
    await connection.execute(
        "UPDATE data_keys SET kek_id = $1, wrapped_key = new.wrapped, wrapped_at = now(),"
        " unreadable_at = NULL FROM unnest($2::text[], $3::bytea[]) AS new (tenant_id, wrapped)"
        " WHERE data_keys.tenant_id = new.tenant_id",
        kek,
        [one.tenant for one in keys],
        [one.key.wrapped for one in keys],
    )


async def give_up(connection: Connection, tenants: Sequence[TenantId]) -> None:
    """Sets their data keys aside for a while, so that the others get their turn."""
    await connection.execute(
        "UPDATE data_keys SET unreadable_at = now() WHERE tenant_id = ANY($1)", tenants
    )


async def retire(connection: Connection, kek: KekId) -> Standing:
    """Lets no data key be under it from now on; returns how it stood before.

    Raises:
        KekInUseError: data keys are under it.
    """
    usable = await connection.fetchval(
        "SELECT usable FROM key_encryption_keys WHERE kek_id = $1 FOR UPDATE", kek
    )
    try:
        await connection.execute(
            "INSERT INTO key_encryption_keys (kek_id, usable) VALUES ($1, false)"
            " ON CONFLICT (kek_id) DO UPDATE SET usable = false",
            kek,
        )
    except asyncpg.ForeignKeyViolationError as error:
        raise KekInUseError from error
    if usable is None:
        return Standing.NEVER_USED
    return Standing.USABLE if usable else Standing.RETIRED


async def reinstate(connection: Connection, kek: KekId, before: Standing) -> None:
    """Undoes `retire`."""
    match before:
        case Standing.NEVER_USED:
            await connection.execute(
                "DELETE FROM key_encryption_keys WHERE kek_id = $1 AND NOT usable", kek
            )
        case Standing.USABLE:
            await connection.execute(
                "UPDATE key_encryption_keys SET usable = true WHERE kek_id = $1", kek
            )
        case Standing.RETIRED:
            return


def _tenant_key(row: asyncpg.Record) -> TenantKey:
    key = WrappedKey(DataKeyId(row["data_key_id"]), KekId(row["kek_id"]), row["wrapped_key"])
    return TenantKey(TenantId(row["tenant_id"]), key)
