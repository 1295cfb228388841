"""The table of connections, one function a query."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg

from services.credentials.domain import (
    Connection,
    ConnectionKind,
    ConnectionState,
    StateReason,
)
from services.shared.ids import ConnectionId, TenantId
from services.shared.postgres import Connection as DbConnection

COLUMNS = (
    "connection_id, tenant_id, name, provider, kind, exclusive, parameters, state, state_reason,"
    " state_at, scopes, client_id, generation, last_vended_at, created_at,"
    " coalesce(secret_expires_at, (SELECT token.expires_at FROM access_tokens AS token"
    " WHERE token.connection_id = connections.connection_id AND token.scope_key = ''))"
    " AS token_expires_at,"
    " (SELECT max(waiting.expires_at) FROM authorizations AS waiting"
    " WHERE waiting.connection_id = connections.connection_id AND waiting.expires_at > now())"
    " AS authorization_expires_at"
)


@dataclass(frozen=True, slots=True)
class NewRow:
    """A connection on its way into its row."""

    connection_id: ConnectionId
    request_id: str
    request_digest: bytes = field(repr=False)
    name: str
    provider: str
    kind: ConnectionKind
    exclusive: bool
    parameters: Mapping[str, str]
    state: ConnectionState
    client_id: str | None = None
    sealed_client_secret: bytes | None = field(default=None, repr=False)
    sealed_secret: bytes | None = field(default=None, repr=False)
    secret_expires_at: datetime | None = None


async def lock_tenant(db: DbConnection, tenant: TenantId) -> None:
    """Returns when no other transaction makes connections of the tenant."""
    await db.execute("SELECT pg_advisory_xact_lock(hashtextextended('tenant ' || $1, 0))", tenant)


async def now(db: DbConnection) -> datetime:
    """Returns the time by the database's clock, the one that all times here are compared by."""
    at: datetime = await db.fetchval("SELECT now()")
    return at


async def of_request(
    db: DbConnection, tenant: TenantId, request_id: str
) -> tuple[Connection, bytes] | None:
    """Returns what an earlier call with the same request_id made, and the digest of its content."""
    row = await db.fetchrow(
        f"SELECT {COLUMNS}, request_digest FROM connections"  # noqa: S608 columns
        " WHERE tenant_id = $1 AND request_id = $2",
        tenant,
        request_id,
    )
    return None if row is None else (read(row), bytes(row["request_digest"]))


async def count(db: DbConnection, tenant: TenantId) -> int:
    """Returns how many connections the tenant has that are not deleted."""
    return int(
        await db.fetchval(
            "SELECT count(*) FROM connections WHERE tenant_id = $1 AND state <> 'deleted'", tenant
        )
    )


async def insert(db: DbConnection, tenant: TenantId, new: NewRow) -> Connection:
    """Writes a connection down."""
    row = await db.fetchrow(
        "INSERT INTO connections (connection_id, tenant_id, request_id, request_digest, name,"  # noqa: S608 columns
        " provider, kind, exclusive, parameters, state, client_id, sealed_client_secret,"
        " sealed_secret, secret_expires_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9::jsonb, $10, $11, $12, $13, $14)"
        f" RETURNING {COLUMNS}",
        new.connection_id,
        tenant,
        new.request_id,
        new.request_digest,
        new.name,
        new.provider,
        new.kind,
        new.exclusive,
        json.dumps(dict(new.parameters)),
        new.state,
        new.client_id,
        new.sealed_client_secret,
        new.sealed_secret,
        new.secret_expires_at,
    )
    return read(_some(row))


async def get(
    db: DbConnection, connection: ConnectionId, *, lock: bool = False
) -> Connection | None:
    """Returns the connection; with `lock`, nobody else changes it in this transaction's time."""
    row = await db.fetchrow(
        f"SELECT {COLUMNS} FROM connections WHERE connection_id = $1"  # noqa: S608 columns
        + (" FOR NO KEY UPDATE" if lock else ""),
        connection,
    )
    return None if row is None else read(row)


async def page(
    db: DbConnection,
    tenant: TenantId,
    state: ConnectionState | None,
    before: tuple[datetime, str] | None,
    most: int,
) -> list[Connection]:
    """Returns the tenant's connections that are not deleted, newest first."""
    time, last = before if before is not None else (None, None)
    rows = await db.fetch(
        f"SELECT {COLUMNS} FROM connections WHERE tenant_id = $1 AND state <> 'deleted'"  # noqa: S608 columns
        " AND ($2::text IS NULL OR state = $2)"
        " AND ($3::timestamptz IS NULL OR (created_at, connection_id) < ($3, $4::text))"
        " ORDER BY created_at DESC, connection_id DESC LIMIT $5",
        tenant,
        state,
        time,
        last,
        most,
    )
    return [read(row) for row in rows]


async def set_name(db: DbConnection, connection: ConnectionId, name: str) -> None:
    """Writes another name."""
    await db.execute("UPDATE connections SET name = $2 WHERE connection_id = $1", connection, name)


async def set_exclusive(db: DbConnection, connection: ConnectionId, exclusive: bool) -> bool:
    """Writes whether it serves one deployment alone; False: it has more than one binding."""
    try:
        async with db.transaction():
            await db.execute(
                "UPDATE connections SET exclusive = $2 WHERE connection_id = $1",
                connection,
                exclusive,
            )
    except asyncpg.UniqueViolationError:
        return False
    return True


async def set_secret(
    db: DbConnection,
    connection: ConnectionId,
    sealed_secret: bytes,
    secret_expires_at: datetime | None,
) -> None:
    """Writes another static token or API key; a connection that was broken works again."""
    await db.execute(
        "UPDATE connections SET sealed_secret = $2, secret_expires_at = $3, state = 'active',"
        " state_reason = NULL, generation = generation + 1,"
        " state_at = CASE WHEN state = 'active' THEN state_at ELSE now() END"
        " WHERE connection_id = $1",
        connection,
        sealed_secret,
        secret_expires_at,
    )


async def set_client(
    db: DbConnection,
    connection: ConnectionId,
    client_id: str | None,
    sealed_client_secret: bytes | None,
) -> None:
    """Writes with which OAuth client the grant was got; None: the operator's."""
    await db.execute(
        "UPDATE connections SET client_id = $2, sealed_client_secret = $3 WHERE connection_id = $1",
        connection,
        client_id,
        sealed_client_secret,
    )


async def sealed_client_secret_of(db: DbConnection, connection: ConnectionId) -> bytes | None:
    """Returns the sealed secret of the tenant's own OAuth client; None: there is none."""
    sealed: bytes | None = await db.fetchval(
        "SELECT sealed_client_secret FROM connections WHERE connection_id = $1", connection
    )
    return sealed


def _some(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise LookupError("the database returned no row where it must")
    return row


def read(row: asyncpg.Record) -> Connection:
    """Returns the connection of a row with `COLUMNS`."""
    reason, scopes = row["state_reason"], row["scopes"]
    return Connection(
        connection_id=ConnectionId(row["connection_id"]),
        tenant_id=TenantId(row["tenant_id"]),
        name=row["name"],
        provider=row["provider"],
        kind=ConnectionKind(row["kind"]),
        exclusive=row["exclusive"],
        state=ConnectionState(row["state"]),
        state_reason=None if reason is None else StateReason(reason),
        state_at=row["state_at"],
        scopes=None if scopes is None else tuple(scopes),
        parameters=json.loads(row["parameters"]),
        client_id=row["client_id"],
        created_at=row["created_at"],
        generation=row["generation"],
        last_vended_at=row["last_vended_at"],
        token_expires_at=row["token_expires_at"],
        authorization_expires_at=row["authorization_expires_at"],
    )
