"""The table of the audit log, one function a query."""

import json
from datetime import datetime

import asyncpg

from services.auth.domain import AuditEvent
from services.shared.ids import AuditEventId, KeyId, TenantId
from services.shared.postgres import Connection


async def insert_audit_event(
    connection: Connection, tenant_id: TenantId | None, event: AuditEvent
) -> None:
    """Writes one event; without a tenant it is the operator's."""
    await connection.execute(
        "INSERT INTO audit_events (event_id, tenant_id, at, key_id, peer, method, resources,"
        " trace_id) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        event.event_id,
        tenant_id,
        event.at,
        event.key_id,
        event.peer,
        event.method,
        json.dumps(dict(event.resources)),
        event.trace_id,
    )


async def list_audit_events(
    connection: Connection,
    tenant_id: TenantId,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[AuditEvent]:
    """Returns events, newest first, that come after the position `after`."""
    rows = await connection.fetch(
        "SELECT event_id, at, key_id, peer, method, resources, trace_id FROM audit_events"
        " WHERE tenant_id = $1 AND ($2::timestamptz IS NULL OR (at, event_id) < ($2, $3))"
        " ORDER BY at DESC, event_id DESC LIMIT $4",
        tenant_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_audit_event(row) for row in rows]


def _audit_event(row: asyncpg.Record) -> AuditEvent:
    return AuditEvent(
        event_id=AuditEventId(row["event_id"]),
        at=row["at"],
        key_id=KeyId(row["key_id"]),
        peer=row["peer"],
        method=row["method"],
        resources=json.loads(row["resources"]),
        trace_id=row["trace_id"],
    )
