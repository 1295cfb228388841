"""Keys as they are presented: whose they are, and when they were used."""

from collections.abc import Mapping, Sequence
from datetime import datetime

import asyncpg

from services.shared.ids import DeploymentId, KeyId, TenantId
from services.shared.postgres import Connection
from services.shared.principal import KeyKind, Plan, Principal


async def resolve_keys(
    connection: Connection, digests: Sequence[bytes]
) -> tuple[int, list[Principal | None]]:
    """Returns the last revocation and the principal of each digest, of one moment.

    One statement: the number and the keys are of one snapshot, so no revocation is between them.
    """
    rows = await connection.fetch(
        """
        SELECT s.sequence, k.key_id, k.kind, k.tenant_id, k.digest, k.deployment_id, k.scopes,
               k.expires_at, k.bound_peer, t.plan, k.first_used_at IS NULL AS unused
        FROM revocation_sequence s
        CROSS JOIN unnest($1::bytea[]) WITH ORDINALITY AS asked (digest, position)
        LEFT JOIN keys k ON k.digest = asked.digest AND k.revoked_at IS NULL
             AND (k.expires_at IS NULL OR k.expires_at > now())
        LEFT JOIN tenants t ON t.tenant_id = k.tenant_id
        ORDER BY asked.position
        """,
        list(digests),
    )
    unused = {
        row["key_id"]: row["digest"] for row in rows if row["key_id"] is not None and row["unused"]
    }
    lost = set(unused) - await _first_used(connection, unused) if unused else set()
    found = [None if row["key_id"] in lost else _principal(row) for row in rows]
    return rows[0]["sequence"], found


async def _first_used(connection: Connection, digests: Mapping[str, bytes]) -> set[str]:
    """Writes the first use of keys; returns those that were not given another secret meanwhile."""
    rows = await connection.fetch(
        """
        WITH used AS (
            SELECT k.key_id FROM keys k
            JOIN unnest($1::text[], $2::bytea[]) AS asked (key_id, digest)
              ON k.key_id = asked.key_id AND k.digest = asked.digest
            ORDER BY k.key_id FOR NO KEY UPDATE OF k
        )
        UPDATE keys SET first_used_at = coalesce(first_used_at, now())
        FROM used WHERE keys.key_id = used.key_id RETURNING keys.key_id
        """,
        list(digests),
        list(digests.values()),
    )
    return {row["key_id"] for row in rows}


async def write_last_uses(connection: Connection, minutes: Mapping[KeyId, datetime]) -> None:
    """Writes the minute of each key's last use, unless a later one stands there."""
    await connection.execute(
        """
        WITH used AS (
            SELECT k.key_id, asked.at FROM keys k
            JOIN unnest($1::text[], $2::timestamptz[]) AS asked (key_id, at) USING (key_id)
            WHERE k.last_used_at IS NULL OR k.last_used_at < asked.at
            ORDER BY k.key_id FOR NO KEY UPDATE OF k
        )
        UPDATE keys SET last_used_at = used.at FROM used WHERE keys.key_id = used.key_id
        """,
        list(minutes),
        list(minutes.values()),
    )


def _principal(row: asyncpg.Record) -> Principal | None:
    if row["key_id"] is None:
        return None
    return Principal(
        key_id=KeyId(row["key_id"]),
        kind=KeyKind(row["kind"]),
        tenant_id=TenantId(row["tenant_id"]) if row["tenant_id"] is not None else None,
        deployment_id=DeploymentId(row["deployment_id"])
        if row["deployment_id"] is not None
        else None,
        scopes=frozenset(row["scopes"]),
        plan=Plan(row["plan"]) if row["plan"] is not None else Plan.FREE,
        expires_at=row["expires_at"],
        bound_peer=row["bound_peer"],
    )
