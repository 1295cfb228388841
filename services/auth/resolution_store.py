"""Keys as they are presented: whose they are, and when they were used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.shared.ids import ConnectionId, DeploymentId, KeyId, TenantId
from services.shared.postgres import Connection
from services.shared.principal import KeyKind, Plan, Principal


@dataclass(frozen=True, slots=True)
class Match:
    """Whose a key is, and as which of the values that it may be stored as it was found."""

    principal: Principal
    place: int


async def resolve_keys(
    connection: Connection, asked: Sequence[Sequence[bytes]]
) -> tuple[int, list[Match | None]]:
    """Returns the last revocation and whose each key is, of one moment.

    `asked` has what each key may be stored as, by every pepper that is known. One statement: the
    number and the keys are of one snapshot, so no revocation is between them. Of an erased tenant
    the key of the job that erased it is still known, until it expires.
    """
    rows = await connection.fetch(
        """
        SELECT s.sequence, coalesce(k.key_id, g.key_id) AS key_id,
               coalesce(k.kind, 'job') AS kind, coalesce(k.tenant_id, g.tenant_id) AS tenant_id,
               k.deployment_id, k.connection_id, coalesce(k.scopes, g.scopes) AS scopes,
               coalesce(k.expires_at, g.expires_at) AS expires_at,
               coalesce(k.bound_peer, g.bound_peer) AS bound_peer, t.plan,
               k.key_id IS NOT NULL AND k.first_used_at IS NULL AS unused
        FROM revocation_sequence s
        CROSS JOIN unnest($1::bytea[]) WITH ORDINALITY AS asked (digest, position)
        LEFT JOIN keys k ON k.digest = asked.digest AND k.revoked_at IS NULL
             AND (k.expires_at IS NULL OR k.expires_at > now())
        LEFT JOIN tenants t ON t.tenant_id = k.tenant_id
        LEFT JOIN tombstones g ON g.digest = asked.digest AND g.expires_at > now()
        ORDER BY asked.position
        """,
        [digest for candidates in asked for digest in candidates],
    )
    found = iter(rows)
    matches = [_match([next(found) for _ in candidates]) for candidates in asked]
    unused = {
        match.principal.key_id: candidates
        for (match, is_unused), candidates in zip(matches, asked, strict=True)
        if match is not None and is_unused
    }
    lost = set(unused) - await _first_used(connection, unused) if unused else set()
    return rows[0]["sequence"], [
        None if match is None or match.principal.key_id in lost else match for match, _ in matches
    ]


def _match(rows: Sequence[asyncpg.Record]) -> tuple[Match | None, bool]:
    """Returns whose the key is and whether this is its first use."""
    for place, row in enumerate(rows):
        if row["key_id"] is not None:
            return Match(_principal(row), place), row["unused"]
    return None, False


async def _first_used(connection: Connection, asked: Mapping[KeyId, Sequence[bytes]]) -> set[KeyId]:
    """Writes the first use of keys; returns those that were not given another secret meanwhile.

    Under another pepper a key has still the secret that was presented. No join: of a row that was
    waited for, only its own columns are looked at again.
    """
    rows = await connection.fetch(
        """
        WITH used AS (
            SELECT key_id FROM keys WHERE key_id = ANY($1) AND digest = ANY($2)
            ORDER BY key_id FOR NO KEY UPDATE
        )
        UPDATE keys SET first_used_at = coalesce(first_used_at, now())
        FROM used WHERE keys.key_id = used.key_id RETURNING keys.key_id
        """,
        list(asked),
        [digest for candidates in asked.values() for digest in candidates],
    )
    return {KeyId(row["key_id"]) for row in rows}


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


def _principal(row: asyncpg.Record) -> Principal:
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
        connection_id=ConnectionId(row["connection_id"])
        if row["connection_id"] is not None
        else None,
    )
