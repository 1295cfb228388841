"""The table `data_keys`, which each service that encrypts has of its own; one function a query."""

import asyncpg

from services.shared.crypto import DataKeyId, KekId, WrappedKey
from services.shared.ids import TenantId
from services.shared.postgres import Connection


class KekEndedError(Exception):
    """No data key may be under that key-encryption key any more."""


async def get_data_key(connection: Connection, tenant: TenantId) -> WrappedKey | None:
    """Returns the tenant's data key."""
    row = await connection.fetchrow(
        "SELECT data_key_id, kek_id, wrapped_key FROM data_keys WHERE tenant_id = $1", tenant
    )
    if row is None:
        return None
    return WrappedKey(DataKeyId(row["data_key_id"]), KekId(row["kek_id"]), row["wrapped_key"])


async def put_data_key(connection: Connection, tenant: TenantId, key: WrappedKey) -> WrappedKey:
    """Keeps the tenant's data key, unless it has one; returns the one that it has.

    Raises:
        KekEndedError: the key-encryption key is destroyed, or about to be.
    """
    await connection.execute(
        "INSERT INTO key_encryption_keys (kek_id) VALUES ($1) ON CONFLICT DO NOTHING", key.kek_id
    )
    try:
        await connection.execute(
            "INSERT INTO data_keys (tenant_id, data_key_id, kek_id, wrapped_key)"
            " VALUES ($1, $2, $3, $4) ON CONFLICT (tenant_id) DO NOTHING",
            tenant,
            key.data_key_id,
            key.kek_id,
            key.wrapped,
        )
    except asyncpg.ForeignKeyViolationError as error:
        raise KekEndedError from error
    kept = await get_data_key(connection, tenant)
    if kept is None:
        raise LookupError("the data key is gone again")
    return kept
