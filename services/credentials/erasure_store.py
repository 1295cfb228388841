"""What is kept of a tenant, erased; one function a query."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import asyncpg

from services.credentials.domain import Revocation
from services.shared.ids import ConnectionId, TenantId
from services.shared.postgres import Connection


@dataclass(frozen=True, slots=True)
class Unrevoked:
    """What lives on at a provider, or asks something of a person there."""

    connection_id: ConnectionId
    provider: str
    name: str
    revocation: Revocation
    advice: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """What was erased, and what could not be revoked."""

    erased_at: datetime
    connections: int
    bindings: int
    revoked: int
    unrevoked: Sequence[Unrevoked]


async def begin(connection: Connection, tenant: TenantId) -> Receipt | None:
    """Writes down that the tenant is being erased, so that nothing more comes to be of it.

    Returns the receipt when it is erased already.
    """
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('erasure ' || $1, 0))", tenant
    )
    await connection.execute(
        "INSERT INTO erasures (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", tenant
    )
    row = await connection.fetchrow(
        "SELECT erased_at, receipt FROM erasures WHERE tenant_id = $1", tenant
    )
    return None if row is None or row["erased_at"] is None else _receipt(row)


async def stop(connection: Connection, tenant: TenantId) -> None:
    """Ends all that is lent, asked and told, and makes every connection one that is going."""
    await connection.execute(
        "WITH ended AS (DELETE FROM bindings WHERE tenant_id = $1 RETURNING binding_id)"
        " UPDATE erasures SET receipt = jsonb_set(receipt, '{bindings}', to_jsonb("
        "  coalesce((receipt ->> 'bindings')::bigint, 0) + (SELECT count(*) FROM ended)))"
        " WHERE tenant_id = $1",
        tenant,
    )
    await connection.execute("DELETE FROM authorizations WHERE tenant_id = $1", tenant)
    await connection.execute("DELETE FROM webhooks WHERE tenant_id = $1", tenant)
    # What was deleted before has told its own outcome then.
    await connection.execute(
        "DELETE FROM connections WHERE tenant_id = $1 AND state = 'deleted'", tenant
    )
    await connection.execute(
        "UPDATE connections SET state = 'deleting', state_reason = NULL, state_at = now()"
        " WHERE tenant_id = $1 AND state <> 'deleting'",
        tenant,
    )


async def unasked(connection: Connection, tenant: TenantId) -> Sequence[ConnectionId]:
    """Returns the connections about which their provider was not asked yet."""
    rows = await connection.fetch(
        "SELECT connection_id FROM connections WHERE tenant_id = $1 AND revocation IS NULL"
        " ORDER BY connection_id",
        tenant,
    )
    return [ConnectionId(row["connection_id"]) for row in rows]


async def finish(connection: Connection, tenant: TenantId) -> Receipt | None:
    """Erases every row of the tenant, its data key last, and keeps the receipt.

    Returns None, and erases nothing, while a provider was not asked yet.
    """
    row = await connection.fetchrow(
        "SELECT erased_at, receipt FROM erasures WHERE tenant_id = $1 FOR UPDATE", tenant
    )
    if row is not None and row["erased_at"] is not None:
        return _receipt(row)
    if await unasked(connection, tenant):
        return None
    found = await connection.fetch(
        "SELECT connection_id, provider, name, revocation, revocation_advice FROM connections"
        " WHERE tenant_id = $1 ORDER BY connection_id",
        tenant,
    )
    for table in ("access_tokens", "connections", "deployments", "data_keys"):
        await connection.execute(
            f"DELETE FROM {table} WHERE tenant_id = $1",  # noqa: S608 a name from above
            tenant,
        )
    kept = await connection.fetchrow(
        "UPDATE erasures SET erased_at = now(), receipt = receipt || $2::jsonb"
        " WHERE tenant_id = $1 RETURNING erased_at, receipt",
        tenant,
        json.dumps(_outcome(found)),
    )
    return None if kept is None else _receipt(kept)


def _outcome(rows: Sequence[asyncpg.Record]) -> Mapping[str, object]:
    """Returns what the receipt says of the connections."""
    revoked = [row for row in rows if row["revocation"] == Revocation.REVOKED]
    asks = [
        row
        for row in rows
        if row["revocation_advice"]
        or row["revocation"] in (Revocation.UNSUPPORTED, Revocation.FAILED)
    ]
    return {
        "connections": len(rows),
        "revoked": len(revoked),
        "unrevoked": [asdict(_unrevoked(row, "revocation_advice")) for row in asks],
    }


def _receipt(row: asyncpg.Record) -> Receipt:
    kept = json.loads(row["receipt"])
    return Receipt(
        erased_at=row["erased_at"],
        connections=kept["connections"],
        bindings=kept["bindings"],
        revoked=kept["revoked"],
        unrevoked=[_unrevoked(each, "advice") for each in kept["unrevoked"]],
    )


def _unrevoked(values: Mapping[str, Any] | asyncpg.Record, advice: str) -> Unrevoked:
    return Unrevoked(
        connection_id=ConnectionId(values["connection_id"]),
        provider=values["provider"],
        name=values["name"],
        revocation=Revocation(values["revocation"]),
        advice=values[advice],
    )
