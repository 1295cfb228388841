"""What a restored database is told of the time that it has lost, one function a query."""

from collections.abc import Mapping
from datetime import datetime

from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Connection

# More revocations than a lost time can have had: what a replica remembers of that time is behind.
_LEAP = 1_000_000_000

_END = """
    WITH ended AS (
        UPDATE keys SET
            revoked_at = CASE WHEN least(expires_at, e.ends_at) <= now() THEN now() END,
            expires_at = least(expires_at, e.ends_at)
        FROM unnest($1::text[], $2::timestamptz[]) AS e (key_id, ends_at)
        WHERE keys.key_id = e.key_id AND kind <> 'operator' AND revoked_at IS NULL
        RETURNING 1
    )
    SELECT count(*) FROM ended
"""
_END_EVERY = """
    WITH ended AS (
        UPDATE keys SET revoked_at = now() WHERE kind <> 'operator' AND revoked_at IS NULL
        RETURNING 1
    )
    SELECT count(*) FROM ended
"""
_WITHOUT_KEY = """
    SELECT tenant_id FROM tenants t
    WHERE closed_at IS NULL AND NOT EXISTS (
        SELECT FROM keys k
        WHERE k.tenant_id = t.tenant_id AND k.kind = 'tenant' AND k.support_reason IS NULL
          AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now())
    )
    ORDER BY tenant_id
"""


async def begin_anew(connection: Connection) -> None:
    """Puts what comes next after everything that was revoked in the lost time, and frees watchers.

    A replica that remembers keys of that time is told to forget all of them: it finds that it has
    not heard of every revocation since.
    """
    await connection.execute("UPDATE revocation_sequence SET sequence = sequence + $1", _LEAP)
    await connection.execute("DELETE FROM revocation_watchers")


async def end_keys(connection: Connection, ends: Mapping[KeyId, datetime]) -> int:
    """Ends each key at its time, at once when that is past; returns how many were not revoked."""
    count: int = await connection.fetchval(_END, list(ends), list(ends.values()))
    return count


async def end_every_key(connection: Connection) -> int:
    """Revokes every key but the operator's; returns how many were not."""
    count: int = await connection.fetchval(_END_EVERY)
    return count


async def tenants_without_key(connection: Connection) -> list[TenantId]:
    """Returns the open tenants that no valid key of their own is left to."""
    rows = await connection.fetch(_WITHOUT_KEY)
    return [TenantId(row["tenant_id"]) for row in rows]
