"""The tables of the audit log, one function a query; the database chains what is inserted."""

import json
from collections.abc import Sequence

import asyncpg
import structlog

from services.auth.audit_events import AuditEvent, AuditPage, Filter, NewEvent
from services.shared.errors import Reason, UnavailableError
from services.shared.ids import AuditEventId, KeyId, TenantId
from services.shared.postgres import Connection

_INSERT = """
    INSERT INTO audit_events (event_id, tenant_id, key_id, peer, method, resources, trace_id,
                              reason)
    SELECT event_id, $1, key_id, peer, method, resources::jsonb, trace_id, reason
    FROM unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])
         WITH ORDINALITY AS new (event_id, key_id, peer, method, resources, trace_id, reason, place)
    ORDER BY place
"""
_LIST = """
    SELECT h.sequence AS head_sequence, h.hash AS head_hash, e.event_id, e.at, e.key_id, e.peer,
           e.method, e.resources, e.trace_id, e.reason, e.sequence, e.previous_hash, e.hash
    FROM audit_chains h LEFT JOIN LATERAL (
        SELECT event_id, at, key_id, peer, method, resources, trace_id, reason, sequence,
               previous_hash, hash
        FROM audit_events
        WHERE tenant_id = $1
          AND ($2::text IS NULL OR sequence < (
                SELECT sequence FROM audit_events WHERE tenant_id = $1 AND event_id = $2))
          AND ($3::text IS NULL OR method = $3)
          AND ($4::text IS NULL OR key_id = $4)
          AND ($5::text IS NULL OR EXISTS (
                SELECT FROM jsonb_each_text(resources) AS named WHERE named.value = $5))
          AND ($6::timestamptz IS NULL OR at >= $6)
          AND ($7::timestamptz IS NULL OR at < $7)
        ORDER BY sequence DESC LIMIT $8
    ) e ON true
    WHERE h.tenant_id = $1
    ORDER BY e.sequence DESC
"""


async def insert_audit_events(
    connection: Connection, tenant_id: TenantId | None, events: Sequence[NewEvent]
) -> None:
    """Adds the events to the tenant's chain, in order; without a tenant to the operator's.

    Raises:
        UnavailableError: the log takes none now, for whatever reason.
    """
    try:
        await connection.execute(
            _INSERT,
            tenant_id,
            [event.event_id for event in events],
            [event.key_id for event in events],
            [event.peer for event in events],
            [event.method for event in events],
            [json.dumps(dict(event.resources)) for event in events],
            [event.trace_id for event in events],
            [event.reason for event in events],
        )
    except asyncpg.PostgresError as error:
        structlog.get_logger().error("the audit log refused an event", error=repr(error))
        raise UnavailableError(
            "the audit log cannot be written", Reason.AUDIT_UNAVAILABLE
        ) from error


async def list_audit_events(
    connection: Connection, tenant_id: TenantId, wanted: Filter, after: str | None, limit: int
) -> AuditPage:
    """Returns events, newest first, that come after the event `after`, and the head.

    One statement: no event is recorded between the two.
    """
    rows = await connection.fetch(
        _LIST,
        tenant_id,
        after,
        wanted.method,
        wanted.key_id,
        wanted.resource_id,
        wanted.start,
        wanted.end,
        limit,
    )
    if not rows:
        return AuditPage()
    events = [_audit_event(row) for row in rows if row["event_id"] is not None]
    return AuditPage(events, rows[0]["head_sequence"], rows[0]["head_hash"])


def _audit_event(row: asyncpg.Record) -> AuditEvent:
    return AuditEvent(
        event_id=AuditEventId(row["event_id"]),
        at=row["at"],
        key_id=KeyId(row["key_id"]),
        peer=row["peer"],
        method=row["method"],
        resources=json.loads(row["resources"]),
        trace_id=row["trace_id"],
        reason=row["reason"],
        sequence=row["sequence"],
        previous_hash=row["previous_hash"],
        hash=row["hash"],
    )
