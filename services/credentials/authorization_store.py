"""The table of authorizations under way, one function a query."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import asyncpg

from services.shared.ids import ConnectionId, KeyId, TenantId
from services.shared.postgres import Connection as DbConnection

_AUTHORIZATION = (
    "authorization_id, tenant_id, connection_id, beneficiary, sealed_verifier, client_id,"
    " sealed_client_secret, scopes, redirect_url, sealed_key_digest"
)


@dataclass(frozen=True, slots=True)
class NewRow:
    """An authorization on its way into its row."""

    authorization_id: str
    connection_id: ConnectionId
    request_id: str
    request_digest: bytes = field(repr=False)
    key_id: KeyId
    sealed_key_digest: bytes = field(repr=False)
    beneficiary: str
    state_digest: bytes = field(repr=False)
    sealed_verifier: bytes = field(repr=False)
    # None: the operator's client.
    client_id: str | None
    sealed_client_secret: bytes | None = field(repr=False)
    scopes: Sequence[str]
    redirect_url: str
    at_door: bool


@dataclass(frozen=True, slots=True)
class Authorization:
    """An authorization that a person was asked for."""

    authorization_id: str
    tenant_id: TenantId
    connection_id: ConnectionId
    beneficiary: str
    sealed_verifier: bytes = field(repr=False)
    client_id: str | None
    sealed_client_secret: bytes | None = field(repr=False)
    scopes: tuple[str, ...]
    redirect_url: str
    sealed_key_digest: bytes = field(repr=False)


async def digest_of(db: DbConnection, tenant: TenantId, request_id: str) -> bytes | None:
    """Returns the digest of what was begun with the request_id."""
    digest: bytes | None = await db.fetchval(
        "SELECT request_digest FROM authorizations WHERE tenant_id = $1 AND request_id = $2",
        tenant,
        request_id,
    )
    return digest


async def put(db: DbConnection, tenant: TenantId, new: NewRow, life: timedelta) -> datetime:
    """Writes the connection's one authorization; returns when it ends.

    Whatever other was under way for it, and what nobody completed in time, goes.
    """
    await db.execute(
        "DELETE FROM authorizations"
        " WHERE tenant_id = $1 AND (connection_id = $2 OR expires_at <= now())",
        tenant,
        new.connection_id,
    )
    expires_at: datetime = await db.fetchval(
        "INSERT INTO authorizations (authorization_id, tenant_id, connection_id, request_id,"
        " request_digest, key_id, beneficiary, state_digest, sealed_verifier, client_id,"
        " sealed_client_secret, scopes, redirect_url, at_door, sealed_key_digest,"
        " expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15,"
        " now() + $16::interval) RETURNING expires_at",
        new.authorization_id,
        tenant,
        new.connection_id,
        new.request_id,
        new.request_digest,
        new.key_id,
        new.beneficiary,
        new.state_digest,
        new.sealed_verifier,
        new.client_id,
        new.sealed_client_secret,
        list(new.scopes),
        new.redirect_url,
        new.at_door,
        new.sealed_key_digest,
        life,
    )
    return expires_at


async def peek_at_door(db: DbConnection, state_digest: bytes) -> Authorization | None:
    """Returns what the state stands for, when the front door is to complete it."""
    row = await db.fetchrow(
        f"SELECT {_AUTHORIZATION} FROM authorizations"  # noqa: S608 columns
        " WHERE state_digest = $1 AND at_door AND expires_at > now()",
        state_digest,
    )
    return None if row is None else _authorization(row)


async def consume_at_door(db: DbConnection, state_digest: bytes) -> Authorization | None:
    """Uses up a state that the front door is to complete; of many at once, one gets it."""
    row = await db.fetchrow(
        "DELETE FROM authorizations WHERE state_digest = $1 AND at_door AND expires_at > now()"  # noqa: S608 columns
        f" RETURNING {_AUTHORIZATION}",
        state_digest,
    )
    return None if row is None else _authorization(row)


async def peek(
    db: DbConnection, tenant: TenantId, key_id: KeyId, state_digest: bytes
) -> Authorization | None:
    """Returns what the state stands for, when the tenant's key began it."""
    row = await db.fetchrow(
        f"SELECT {_AUTHORIZATION} FROM authorizations"  # noqa: S608 columns
        " WHERE tenant_id = $1 AND key_id = $2 AND state_digest = $3"
        " AND NOT at_door AND expires_at > now()",
        tenant,
        key_id,
        state_digest,
    )
    return None if row is None else _authorization(row)


async def consume(
    db: DbConnection, tenant: TenantId, key_id: KeyId, state_digest: bytes
) -> Authorization | None:
    """Uses up a state that the tenant's key began; of many at once, one gets it."""
    row = await db.fetchrow(
        "DELETE FROM authorizations WHERE tenant_id = $1 AND key_id = $2 AND state_digest = $3"  # noqa: S608 columns
        f" AND NOT at_door AND expires_at > now() RETURNING {_AUTHORIZATION}",
        tenant,
        key_id,
        state_digest,
    )
    return None if row is None else _authorization(row)


def _authorization(row: asyncpg.Record) -> Authorization:
    return Authorization(
        authorization_id=row["authorization_id"],
        tenant_id=TenantId(row["tenant_id"]),
        connection_id=ConnectionId(row["connection_id"]),
        beneficiary=row["beneficiary"],
        sealed_verifier=row["sealed_verifier"],
        client_id=row["client_id"],
        sealed_client_secret=row["sealed_client_secret"],
        scopes=tuple(row["scopes"]),
        redirect_url=row["redirect_url"],
        sealed_key_digest=row["sealed_key_digest"],
    )
