"""Webhooks and the reports that wait for them, one function a query."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.shared.ids import TenantId
from services.shared.postgres import Connection

# Of each tenant one report, the one that waits longest and was tried least: however many a tenant
# has, and however its receiver behaves, the next tenant's turn comes.
_CLAIM = """
    WITH due AS (
        SELECT DISTINCT ON (tenant_id) event_id, next_try_at FROM webhook_events
        WHERE next_try_at <= now() AND tenant_id <> ALL ($1)
        ORDER BY tenant_id, next_try_at, tries, created_at, event_id
    ), ours AS (
        SELECT event_id FROM webhook_events
        WHERE event_id IN (SELECT event_id FROM due ORDER BY next_try_at LIMIT $2)
          AND next_try_at <= now()
        FOR UPDATE SKIP LOCKED
    )
    UPDATE webhook_events e SET tries = e.tries + 1, next_try_at = now() + $3
    FROM ours, webhooks w
    WHERE e.event_id = ours.event_id AND w.tenant_id = e.tenant_id
    RETURNING e.event_id, e.tenant_id, e.kind, e.body, e.created_at, e.tries, now() AS at,
              w.url, w.sealed_secret
"""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where a tenant is told, and how that goes."""

    url: str
    created_at: datetime
    undelivered: int
    last_delivery_at: datetime | None
    last_failure: str


@dataclass(frozen=True, slots=True)
class Due:
    """A report that is to be delivered now, by whoever claimed it."""

    event_id: str
    tenant_id: TenantId
    kind: str
    # JSON.
    body: str
    created_at: datetime
    # With this one.
    tries: int
    # The time now.
    at: datetime
    url: str = field(repr=False)
    sealed_secret: bytes = field(repr=False)


async def put_webhook(
    connection: Connection, tenant: TenantId, url: str, sealed_secret: bytes
) -> None:
    """Sets where the tenant is told; what waits goes there at once."""
    await connection.execute(
        "INSERT INTO webhooks (tenant_id, url, sealed_secret) VALUES ($1, $2, $3)"
        " ON CONFLICT (tenant_id) DO UPDATE SET url = excluded.url,"
        " sealed_secret = excluded.sealed_secret, created_at = now(), last_failure = ''",
        tenant,
        url,
        sealed_secret,
    )
    await connection.execute(
        "UPDATE webhook_events SET next_try_at = now() WHERE tenant_id = $1", tenant
    )


async def get_webhook(connection: Connection, tenant: TenantId) -> Webhook | None:
    """Returns where the tenant is told."""
    row = await connection.fetchrow(
        "SELECT url, created_at, last_delivery_at, last_failure,"
        " (SELECT count(*) FROM webhook_events e WHERE e.tenant_id = w.tenant_id) AS undelivered"
        " FROM webhooks w WHERE tenant_id = $1",
        tenant,
    )
    if row is None:
        return None
    return Webhook(
        row["url"],
        row["created_at"],
        row["undelivered"],
        row["last_delivery_at"],
        row["last_failure"],
    )


async def delete_webhook(connection: Connection, tenant: TenantId) -> None:
    """Ends it, and what waits with it."""
    await connection.execute("DELETE FROM webhooks WHERE tenant_id = $1", tenant)


async def claim_due(
    connection: Connection, busy: Collection[TenantId], most: int, lease: timedelta
) -> Sequence[Due]:
    """Returns up to `most` reports that are due, one a tenant and none of the `busy` ones.

    Nobody else is given them until the lease is over; then, if they are still there, anybody is.
    """
    rows = await connection.fetch(_CLAIM, list(busy), most, lease)
    return [
        Due(
            event_id=row["event_id"],
            tenant_id=TenantId(row["tenant_id"]),
            kind=row["kind"],
            body=row["body"],
            created_at=row["created_at"],
            tries=row["tries"],
            at=row["at"],
            url=row["url"],
            sealed_secret=row["sealed_secret"],
        )
        for row in rows
    ]


async def set_delivered(connection: Connection, due: Due) -> None:
    """Ends a report that has arrived."""
    await connection.execute("DELETE FROM webhook_events WHERE event_id = $1", due.event_id)
    await connection.execute(
        "UPDATE webhooks SET last_delivery_at = now(), last_failure = '' WHERE tenant_id = $1",
        due.tenant_id,
    )


async def set_dropped(connection: Connection, due: Due, failure: str, kept: timedelta) -> int:
    """Ends a report that is not tried any more, and the tenant's others that are as old as `kept`.

    Returns how many there were.
    """
    dropped = await connection.fetch(
        "DELETE FROM webhook_events"
        " WHERE tenant_id = $1 AND (event_id = $2 OR created_at <= now() - $3::interval)"
        " RETURNING event_id",
        due.tenant_id,
        due.event_id,
        kept,
    )
    await _set_failure(connection, due, failure)
    return len(dropped)


async def set_failed(
    connection: Connection, due: Due, failure: str, delay: timedelta, others: timedelta
) -> None:
    """Lets a report wait for its next try, and the tenant's others at least for `others`.

    Whoever claimed it after us decides alone: then nothing is written of the report.
    """
    await connection.execute(
        "UPDATE webhook_events SET next_try_at = now() + $3 WHERE event_id = $1 AND tries = $2",
        due.event_id,
        due.tries,
        delay,
    )
    await connection.execute(
        "UPDATE webhook_events SET next_try_at = greatest(next_try_at, now() + $3)"
        " WHERE tenant_id = $1 AND event_id <> $2",
        due.tenant_id,
        due.event_id,
        others,
    )
    await _set_failure(connection, due, failure)


async def _set_failure(connection: Connection, due: Due, failure: str) -> None:
    """Tells of a failure, unless the webhook is another one by now."""
    await connection.execute(
        "UPDATE webhooks SET last_failure = $3 WHERE tenant_id = $1 AND url = $2",
        due.tenant_id,
        due.url,
        failure,
    )
