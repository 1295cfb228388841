"""What a grant is in the tables `connections` and `access_tokens`; one function a query."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.credentials.domain import ConnectionState
from services.shared.ids import ConnectionId, TenantId
from services.shared.postgres import Connection as DbConnection

# An outcome that cannot be written down as it is would keep a grant from being kept at all.
_LONGEST_LIFE = timedelta(days=3_650)


@dataclass(frozen=True, slots=True)
class SealedToken:
    """An access token on its way into its row."""

    scope_key: str
    sealed: bytes = field(repr=False)
    token_type: str
    # None: it does not expire.
    expires_in: timedelta | None
    # None: nobody knows.
    scopes: Sequence[str] | None


async def put_access_token(
    db: DbConnection,
    tenant: TenantId,
    connection: ConnectionId,
    token: SealedToken,
    asked_at: datetime | None,
) -> tuple[datetime | None, timedelta | None]:
    """Keeps the token; its life counts from when it was asked for, by the database's clock.

    Returns when it expires, and how much of its life is left; None: it does not expire.
    """
    row = await db.fetchrow(
        "INSERT INTO access_tokens (connection_id, scope_key, tenant_id, sealed_token, token_type,"
        " issued_at, expires_at, scopes)"
        " VALUES ($1, $2, $3, $4, $5, coalesce($6, now()), coalesce($6, now()) + $7::interval, $8)"
        " ON CONFLICT (connection_id, scope_key) DO UPDATE SET"
        " sealed_token = excluded.sealed_token, token_type = excluded.token_type,"
        " expires_at = excluded.expires_at, issued_at = excluded.issued_at,"
        " scopes = excluded.scopes RETURNING expires_at, expires_at - now()",
        connection,
        token.scope_key,
        tenant,
        token.sealed,
        token.token_type,
        asked_at,
        None if token.expires_in is None else min(token.expires_in, _LONGEST_LIFE),
        None if token.scopes is None else list(token.scopes),
    )
    return (None, None) if row is None else (row[0], row[1])


async def drop_access_tokens(db: DbConnection, connection: ConnectionId) -> None:
    """Erases every access token of the connection."""
    await db.execute("DELETE FROM access_tokens WHERE connection_id = $1", connection)


async def renew_connection(
    db: DbConnection,
    connection: ConnectionId,
    *,
    sealed_refresh_token: bytes | None,
    scopes: Sequence[str] | None,
) -> bool:
    """Makes the connection active with a grant that replaces what it had; whether it is there.

    Its generation grows and its refresh marker goes: a refresh of the old grant that is under way
    writes nothing any more.
    """
    status = await db.execute(
        "UPDATE connections SET sealed_refresh_token = $2, scopes = $3, state = $4,"
        " state_reason = NULL,"
        " state_at = CASE WHEN state = $4 THEN state_at ELSE now() END,"
        " generation = generation + 1, refresh_attempt = NULL, refresh_started_at = NULL,"
        " refresh_failures = 0, next_refresh_at = NULL"
        " WHERE connection_id = $1 AND state NOT IN ('deleting', 'deleted')",
        connection,
        sealed_refresh_token,
        None if scopes is None else list(scopes),
        ConnectionState.ACTIVE,
    )
    return status == "UPDATE 1"
