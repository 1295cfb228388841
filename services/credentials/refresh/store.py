"""Refreshes in the table `connections`; one function a query.

Whatever is written about a refresh is written under its fence: the attempt is ours, and the
generation is the one that was read.
"""

from dataclasses import dataclass
from datetime import timedelta

from services.credentials.domain import ConnectionKind, ConnectionState, StateReason
from services.credentials.standings import COLUMNS, Standing, read_standing
from services.shared.ids import ConnectionId, TenantId
from services.shared.postgres import Connection as DbConnection


@dataclass(frozen=True, slots=True)
class Fence:
    """What must still be so for a refresh to write anything."""

    connection_id: ConnectionId
    generation: int
    # None: no refresh was under way.
    attempt: str | None


async def get_standing(
    db: DbConnection, connection: ConnectionId, scope_key: str
) -> Standing | None:
    """Returns how the connection stands, with its token for the scopes."""
    row = await db.fetchrow(
        f"SELECT {COLUMNS} FROM connections c LEFT JOIN access_tokens t"  # noqa: S608 a constant
        " ON t.connection_id = c.connection_id AND t.scope_key = $2 WHERE c.connection_id = $1",
        connection,
        scope_key,
    )
    return None if row is None else read_standing(dict(row))


async def begin_attempt(db: DbConnection, found: Fence, attempt: str) -> bool:
    """Writes down that the provider is about to be asked.

    False: the connection is not what it was when it was read.
    """
    status = await db.execute(
        "UPDATE connections SET refresh_attempt = $4, refresh_started_at = now()"
        " WHERE connection_id = $1 AND generation = $2"
        " AND refresh_attempt IS NOT DISTINCT FROM $3 AND state = 'active'",
        found.connection_id,
        found.generation,
        found.attempt,
        attempt,
    )
    return status == "UPDATE 1"


async def end_attempt(
    db: DbConnection,
    fence: Fence,
    *,
    sealed_refresh_token: bytes | None,
    scopes: tuple[str, ...] | None,
    rest: timedelta | None,
) -> ConnectionState | None:
    """Writes down what came of the refresh; returns the connection's state.

    None: the fence has fallen, and nothing was written. What is given as None stays as it is;
    after `rest` the provider may be asked again. A connection that is being deleted takes it too:
    what is revoked then must be the newest.
    """
    state = await db.fetchval(
        "UPDATE connections SET sealed_refresh_token = coalesce($4, sealed_refresh_token),"
        " scopes = coalesce($5, scopes), generation = generation + 1, refresh_attempt = NULL,"
        " refresh_started_at = NULL, refresh_failures = 0, next_refresh_at = now() + $6::interval"
        " WHERE connection_id = $1 AND generation = $2 AND refresh_attempt = $3"
        " AND state IN ('active', 'deleting') RETURNING state",
        fence.connection_id,
        fence.generation,
        fence.attempt,
        sealed_refresh_token,
        None if scopes is None else list(scopes),
        rest,
    )
    return None if state is None else ConnectionState(state)


async def put_off(
    db: DbConnection, fence: Fence, wait: timedelta | None, *, spent_nothing: bool
) -> None:
    """Counts a failure and lets nobody ask before `wait`; None: counts nothing.

    With `spent_nothing` the attempt is over; else its outcome stays unknown.
    """
    await db.execute(
        "UPDATE connections SET"
        " refresh_attempt = CASE WHEN $5 THEN NULL ELSE refresh_attempt END,"
        " refresh_started_at = CASE WHEN $5 THEN NULL ELSE refresh_started_at END,"
        " refresh_failures = refresh_failures + ($4::interval IS NOT NULL)::int,"
        " next_refresh_at = coalesce(now() + $4::interval, next_refresh_at)"
        " WHERE connection_id = $1 AND generation = $2 AND refresh_attempt IS NOT DISTINCT FROM $3",
        fence.connection_id,
        fence.generation,
        fence.attempt,
        wait,
        spent_nothing,
    )


async def break_connection(db: DbConnection, fence: Fence, reason: StateReason) -> bool:
    """Marks the connection as of no use until it is authorized anew; whether that was possible."""
    status = await db.execute(
        "UPDATE connections SET state = $4, state_reason = $5, state_at = now(),"
        " generation = generation + 1, refresh_attempt = NULL, refresh_started_at = NULL"
        " WHERE connection_id = $1 AND generation = $2"
        " AND refresh_attempt IS NOT DISTINCT FROM $3 AND state = 'active'",
        fence.connection_id,
        fence.generation,
        fence.attempt,
        ConnectionState.NEEDS_REAUTHORIZATION,
        reason,
    )
    return status == "UPDATE 1"


@dataclass(frozen=True, slots=True)
class Due:
    """An access token in use that ends soon."""

    tenant_id: TenantId
    connection_id: ConnectionId
    provider: str
    scope_key: str
    # Whoever finds more of its life left comes after someone who refreshed it.
    least: timedelta


_DUE = """
    SELECT c.tenant_id, c.connection_id, c.provider, t.scope_key, due.least
    FROM access_tokens t JOIN connections c USING (connection_id)
    CROSS JOIN LATERAL (
        SELECT least(greatest(interval '2 minutes', 0.2 * (t.expires_at - t.issued_at)),
                     0.5 * (t.expires_at - t.issued_at))
               -- Connections that were authorized together are not refreshed together.
               * (0.7 + 0.3 * abs(hashtext(t.connection_id) % 1000) / 1000) AS least
    ) due
    WHERE t.last_vended_at > now() - $1::interval AND t.expires_at < now() + due.least
      AND c.state = 'active' AND c.refresh_attempt IS NULL
      AND (c.kind = $2 OR c.sealed_refresh_token IS NOT NULL)
      AND coalesce(c.next_refresh_at, now()) <= now()
    -- What cannot be refreshed, for whatever reason, keeps nobody else from it.
    ORDER BY random() LIMIT $3
"""


async def list_due(db: DbConnection, in_use: timedelta, most: int) -> list[Due]:
    """Returns tokens that were vended within `in_use` and have little of their life left.

    Little: less than two minutes or a fifth of it, but no more than half.
    """
    rows = await db.fetch(_DUE, in_use, ConnectionKind.CLIENT_CREDENTIALS, most)
    return [
        Due(TenantId(row[0]), ConnectionId(row[1]), row[2], row[3], least=row[4]) for row in rows
    ]


async def purge_authorizations(db: DbConnection, most: int) -> int:
    """Deletes authorizations that ended more than a day ago; returns how many of at most `most`."""
    status = await db.execute(
        "DELETE FROM authorizations WHERE authorization_id IN (SELECT authorization_id"
        " FROM authorizations WHERE expires_at < now() - interval '1 day'"
        " ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
        most,
    )
    return int(status.removeprefix("DELETE "))


async def purge_narrowed(db: DbConnection, most: int) -> int:
    """Deletes narrowed tokens that ended more than a day ago; returns how many of at most `most`.

    Ceilings change, and nobody asks for what was under the old ones again.
    """
    status = await db.execute(
        "DELETE FROM access_tokens WHERE (connection_id, scope_key) IN ("
        "SELECT connection_id, scope_key FROM access_tokens"
        " WHERE scope_key <> '' AND expires_at < now() - interval '1 day'"
        " ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
        most,
    )
    return int(status.removeprefix("DELETE "))
