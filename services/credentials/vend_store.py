"""What a key may be vended, read afresh in one statement; one function a query."""

from collections.abc import Collection, Sequence

import asyncpg

from services.credentials.lending import Lent
from services.credentials.standings import COLUMNS, read_standing
from services.shared.ids import BindingId, ConnectionId, DeploymentId
from services.shared.postgres import Connection as DbConnection

# What the ceiling leaves of what was granted; where nobody knows that, the ceiling as it is.
_SCOPE_KEY = """
    CASE WHEN b.scope_ceiling = '{}' OR c.scopes <@ b.scope_ceiling THEN ''
    ELSE (SELECT string_agg(DISTINCT scope COLLATE "C", ' ' ORDER BY scope COLLATE "C")
          FROM unnest(b.scope_ceiling) AS lent (scope)
          WHERE c.scopes IS NULL OR scope = ANY (c.scopes)) END
"""
_LENT = f"""
    SELECT {COLUMNS}, b.binding_id, b.alias, b.scope_ceiling, k.scope_key,
           coalesce(b.expires_at <= now(), false) AS expired,
           d.suspended_at IS NOT NULL AS suspended
    FROM deployments d
    LEFT JOIN (
        bindings b
        JOIN connections c ON c.tenant_id = b.tenant_id AND c.connection_id = b.connection_id
        CROSS JOIN LATERAL (SELECT {_SCOPE_KEY} AS scope_key) k
        LEFT JOIN access_tokens t
            ON t.connection_id = c.connection_id AND t.scope_key = k.scope_key
    ) ON b.deployment_id = d.deployment_id AND (b.alias = ANY ($2) OR c.provider = ANY ($3))
    WHERE d.deployment_id = $1
    ORDER BY b.alias
"""  # noqa: S608 constants
_OWN = f"""
    SELECT {COLUMNS} FROM connections c
    LEFT JOIN access_tokens t ON t.connection_id = c.connection_id AND t.scope_key = ''
    WHERE c.connection_id = $1
"""  # noqa: S608 constants


async def list_lent(
    db: DbConnection,
    deployment: DeploymentId,
    aliases: Collection[str],
    providers: Collection[str],
) -> list[Lent] | None:
    """Returns what is lent to the deployment under these aliases or of these providers.

    None: it is suspended, so nothing is.
    """
    rows = await db.fetch(_LENT, deployment, list(aliases), list(providers))
    if any(row["suspended"] for row in rows):
        return None
    return [_lent(row) for row in rows if row["binding_id"] is not None]


async def get_own(db: DbConnection, connection: ConnectionId) -> Lent | None:
    """Returns the connection, lent to no one but its own key."""
    row = await db.fetchrow(_OWN, connection)
    if row is None:
        return None
    return Lent(read_standing(dict(row)), None, "", frozenset(), expired=False, scope_key="")


async def write_last_vends(db: DbConnection, vends: Sequence[tuple[ConnectionId, str]]) -> None:
    """Notes that these tokens, by connection and scopes, were vended this minute."""
    connections = [connection for connection, _ in vends]
    await db.execute(
        # Who writes the same rows at the same time writes the same into them.
        "UPDATE connections SET last_vended_at = date_trunc('minute', now())"
        " WHERE connection_id IN (SELECT connection_id FROM connections"
        " WHERE connection_id = ANY ($1)"
        " AND coalesce(last_vended_at, '-infinity') < date_trunc('minute', now())"
        " FOR UPDATE SKIP LOCKED)",
        connections,
    )
    await db.execute(
        "UPDATE access_tokens SET last_vended_at = date_trunc('minute', now())"
        " WHERE (connection_id, scope_key) IN (SELECT t.connection_id, t.scope_key"
        " FROM access_tokens t JOIN unnest($1::text[], $2::text[]) AS vended (connection, key)"
        " ON t.connection_id = connection AND t.scope_key = key"
        " WHERE coalesce(t.last_vended_at, '-infinity') < date_trunc('minute', now())"
        " FOR UPDATE OF t SKIP LOCKED)",
        connections,
        [scope_key for _, scope_key in vends],
    )


def _lent(row: asyncpg.Record) -> Lent:
    return Lent(
        standing=read_standing(dict(row)),
        binding_id=BindingId(row["binding_id"]),
        alias=row["alias"],
        scope_ceiling=frozenset(row["scope_ceiling"]),
        expired=row["expired"],
        scope_key=row["scope_key"],
    )
