"""The end of a tenant's rows, one function a query; the database takes them with one another."""

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Connection

_COLUMNS = "erased_at, sequence, keys, deployments, connections, audit_events"


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What stays of a tenant: when it was erased, and how much."""

    erased_at: datetime
    # The revocation that ended its last keys; None when there were none.
    sequence: int | None
    keys: int
    deployments: int
    connections: int
    audit_events: int


async def lock_tenant(connection: Connection, tenant_id: TenantId) -> bool | None:
    """Returns whether the tenant is closed, and makes whoever changes it wait; None: no such."""
    row = await connection.fetchrow(
        "SELECT closed_at IS NOT NULL AS closed FROM tenants WHERE tenant_id = $1"
        " FOR NO KEY UPDATE",
        tenant_id,
    )
    return None if row is None else bool(row["closed"])


async def find(connection: Connection, tenant_id: TenantId) -> Tombstone | None:
    """Returns the tombstone; None when there is none."""
    row = await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM tombstones WHERE tenant_id = $1",  # noqa: S608 a constant
        tenant_id,
    )
    return None if row is None else _tombstone(row)


async def erase(connection: Connection, tenant_id: TenantId, asking: KeyId) -> None:
    """Erases every row of the closed tenant, and keeps what the asking key takes to be known."""
    await connection.execute(
        "INSERT INTO tombstones (tenant_id, key_id) VALUES ($1, $2)", tenant_id, asking
    )


async def write_sequence(
    connection: Connection, tenant_id: TenantId, sequence: int
) -> Tombstone | None:
    """Writes the revocation that ended the tenant's last keys; returns the tombstone with it."""
    row = await connection.fetchrow(
        f"UPDATE tombstones SET sequence = $2 WHERE tenant_id = $1 RETURNING {_COLUMNS}",  # noqa: S608 a constant
        tenant_id,
        sequence,
    )
    return None if row is None else _tombstone(row)


async def forget_expired_keys(connection: Connection) -> None:
    """Forgets the keys of jobs that erased a tenant and have expired."""
    await connection.execute(
        "UPDATE tombstones SET key_id = NULL, digest = NULL, scopes = NULL, bound_peer = NULL,"
        " expires_at = NULL WHERE expires_at < now()"
    )


def _tombstone(row: asyncpg.Record) -> Tombstone:
    return Tombstone(
        row["erased_at"],
        row["sequence"],
        row["keys"],
        row["deployments"],
        row["connections"],
        row["audit_events"],
    )
