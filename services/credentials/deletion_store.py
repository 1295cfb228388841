"""What a connection that is going leaves behind, one function a query."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import asyncpg

from services.credentials.connection_store import COLUMNS, read
from services.credentials.domain import Connection, ConnectionState, Revocation
from services.shared.ids import ConnectionId
from services.shared.postgres import Connection as DbConnection


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What became of a connection that is going, as far as it got."""

    state: ConnectionState
    # None: the provider was not asked yet.
    revocation: Revocation | None
    advice: str
    bindings_ended: int


@dataclass(frozen=True, slots=True)
class SealedGrant:
    """All that a provider could be asked to withdraw, as it is kept."""

    connection: Connection
    sealed_client_secret: bytes | None = field(repr=False)
    sealed_refresh_token: bytes | None = field(repr=False)
    # Those that still work, by the key of their scopes.
    sealed_tokens: Mapping[str, bytes] = field(repr=False)
    # A static token or an API key is kept.
    has_secret: bool
    # A refresh was begun whose outcome was never written.
    interrupted: bool

    @property
    def holds_a_grant(self) -> bool:
        """Whether there is anything that works at the provider still."""
        return self.has_secret or bool(self.sealed_refresh_token or self.sealed_tokens)


async def begin_deletion(db: DbConnection, connection: ConnectionId) -> Tombstone | None:
    """Makes the connection one that is going, unless it is; None: there is none."""
    await db.execute(
        "UPDATE connections SET state = 'deleting', state_reason = NULL, state_at = now()"
        " WHERE connection_id = $1 AND state NOT IN ('deleting', 'deleted')",
        connection,
    )
    return await tombstone(db, connection)


async def tombstone(db: DbConnection, connection: ConnectionId) -> Tombstone | None:
    """Returns how far a connection that is going is gone; None: there is none."""
    row = await db.fetchrow(
        "SELECT state, revocation, revocation_advice, bindings_ended FROM connections"
        " WHERE connection_id = $1",
        connection,
    )
    return None if row is None else _tombstone(row)


async def sealed_grant(db: DbConnection, connection: ConnectionId) -> SealedGrant | None:
    """Returns what could be withdrawn at the provider; None: there is no such connection."""
    row = await db.fetchrow(
        f"SELECT {COLUMNS}, sealed_client_secret, sealed_refresh_token,"  # noqa: S608 columns
        " sealed_secret IS NOT NULL AS has_secret, refresh_attempt IS NOT NULL AS interrupted"
        " FROM connections WHERE connection_id = $1",
        connection,
    )
    if row is None:
        return None
    tokens = await db.fetch(
        "SELECT scope_key, sealed_token FROM access_tokens"
        " WHERE connection_id = $1 AND (expires_at IS NULL OR expires_at > now())",
        connection,
    )
    return SealedGrant(
        connection=read(row),
        sealed_client_secret=row["sealed_client_secret"],
        sealed_refresh_token=row["sealed_refresh_token"],
        sealed_tokens={str(token["scope_key"]): bytes(token["sealed_token"]) for token in tokens},
        has_secret=row["has_secret"],
        interrupted=row["interrupted"],
    )


async def set_revocation(
    db: DbConnection, connection: ConnectionId, revocation: Revocation, advice: str
) -> None:
    """Writes what the provider made of it, unless that is known already."""
    await db.execute(
        "UPDATE connections SET revocation = $2, revocation_advice = $3"
        " WHERE connection_id = $1 AND revocation IS NULL",
        connection,
        revocation,
        advice,
    )


async def end_bindings(db: DbConnection, connection: ConnectionId) -> None:
    """Ends what was lent of a connection that is going, and counts it."""
    await db.execute(
        "WITH ended AS (DELETE FROM bindings WHERE connection_id = $1 RETURNING binding_id)"
        " UPDATE connections SET bindings_ended = bindings_ended + (SELECT count(*) FROM ended)"
        " WHERE connection_id = $1",
        connection,
    )


async def erase(db: DbConnection, connection: ConnectionId) -> None:
    """Erases every ciphertext of a connection that is going, and makes it a tombstone."""
    await db.execute("DELETE FROM access_tokens WHERE connection_id = $1", connection)
    await db.execute("DELETE FROM authorizations WHERE connection_id = $1", connection)
    await db.execute(
        "UPDATE connections SET state = 'deleted', state_at = now(), sealed_secret = NULL,"
        " sealed_client_secret = NULL, sealed_refresh_token = NULL, client_id = NULL,"
        " parameters = '{}', refresh_attempt = NULL, refresh_started_at = NULL,"
        " next_refresh_at = NULL, generation = generation + 1"
        " WHERE connection_id = $1 AND state = 'deleting'",
        connection,
    )


def _tombstone(row: asyncpg.Record) -> Tombstone:
    revocation = row["revocation"]
    return Tombstone(
        state=ConnectionState(row["state"]),
        revocation=None if revocation is None else Revocation(revocation),
        advice=row["revocation_advice"],
        bindings_ended=row["bindings_ended"],
    )
