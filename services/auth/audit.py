"""What auth does for the audit log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from services.auth import audit_store
from services.auth.audit_events import AuditPage, Filter, NewEvent, recordable
from services.shared.coalesce import Coalescer
from services.shared.ids import AuditEventId, KeyId, TenantId, new_audit_event_id
from services.shared.postgres import Connection, Database
from services.shared.principal import Principal

# So many events of one tenant are written by one transaction at the most: some 50 ms of work.
_MOST_TOGETHER = 512


@dataclass(slots=True)
class _Writer:
    """Writes what one tenant does, one transaction at a time."""

    write: Coalescer[Sequence[NewEvent], None]
    waiting: int = 0


class AuditLog:
    """The audit log: each tenant's own chain, and the operator's."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._writers: dict[TenantId | None, _Writer] = {}

    async def record(
        self,
        principal: Principal,
        peer: str,
        method: str,
        resources: Mapping[str, str],
        trace_id: str,
    ) -> AuditEventId:
        """Returns the id of the event once it is written.

        Raises:
            UnavailableError: it cannot be written now.
        """
        event = new_event(principal.key_id, peer, method, resources, trace_id)
        await self.write(principal.tenant_id, [event])
        return event.event_id

    async def page(
        self, tenant_id: TenantId, wanted: Filter, after: str | None, limit: int
    ) -> AuditPage:
        """Returns the tenant's events that come after the event `after`, newest first."""
        async with self._database.tenant(tenant_id) as connection:
            return await audit_store.list_audit_events(connection, tenant_id, wanted, after, limit)

    async def write(self, tenant_id: TenantId | None, events: Sequence[NewEvent]) -> None:
        """Writes the events, all or nothing, together with others that come at the same time.

        Events of one chain follow each other, so that each would wait for all before it, holding a
        connection that other tenants need (P-38).

        Raises:
            UnavailableError: they cannot be written now.
        """
        writer = self._writers.get(tenant_id)
        if writer is None:
            batch = partial(self._write_together, tenant_id)
            writer = _Writer(Coalescer(batch, most=_MOST_TOGETHER, flights=1, weigh=len))
            self._writers[tenant_id] = writer
        writer.waiting += 1
        try:
            await writer.write(events)
        finally:
            writer.waiting -= 1
            if writer.waiting == 0 and self._writers.get(tenant_id) is writer:
                del self._writers[tenant_id]

    async def _write_together(
        self, tenant_id: TenantId | None, calls: Sequence[Sequence[NewEvent]]
    ) -> list[None]:
        # An operator has no tenant whose rows a tenant transaction could be confined to.
        transaction = (
            self._database.service() if tenant_id is None else self._database.tenant(tenant_id)
        )
        async with transaction as connection:
            await audit_store.insert_audit_events(
                connection, tenant_id, [event for events in calls for event in events]
            )
        return [None] * len(calls)


async def record_with(
    connection: Connection, tenant_ids: Sequence[TenantId | None], event: NewEvent
) -> None:
    """Writes the event into several chains, by the transaction of what it is about.

    Chains are locked in one order, the operator's first, so that two of these never wait for each
    other.
    """
    for tenant_id in sorted(tenant_ids, key=lambda one: one or ""):
        own = replace(event, event_id=new_audit_event_id())
        await audit_store.insert_audit_events(connection, tenant_id, [own])


def new_event(
    key_id: KeyId,
    peer: str,
    method: str,
    resources: Mapping[str, str],
    trace_id: str,
    reason: str = "",
) -> NewEvent:
    """Returns the event under a new id."""
    return NewEvent(
        new_audit_event_id(), key_id, peer, method, recordable(resources), trace_id, reason
    )
