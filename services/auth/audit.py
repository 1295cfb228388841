"""What auth does for the audit log."""

from collections.abc import Mapping
from datetime import datetime

from services.auth import audit_store
from services.auth.domain import AuditEvent
from services.shared.clock import Clock
from services.shared.ids import AuditEventId, TenantId, new_audit_event_id
from services.shared.postgres import Database
from services.shared.principal import Principal


class AuditLog:
    """The audit log: each tenant's own, and the operator's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def record(
        self,
        principal: Principal,
        peer: str,
        method: str,
        resources: Mapping[str, str],
        trace_id: str,
    ) -> AuditEventId:
        """Returns the id of the event once it is written."""
        event = AuditEvent(
            event_id=new_audit_event_id(),
            at=self._clock(),
            key_id=principal.key_id,
            peer=peer,
            method=method,
            resources=resources,
            trace_id=trace_id,
        )
        # An operator has no tenant whose rows a tenant transaction could be confined to.
        transaction = (
            self._database.service()
            if principal.tenant_id is None
            else self._database.tenant(principal.tenant_id)
        )
        async with transaction as connection:
            await audit_store.insert_audit_event(connection, principal.tenant_id, event)
        return event.event_id

    async def page(
        self, tenant_id: TenantId, after: tuple[datetime, str] | None, limit: int
    ) -> list[AuditEvent]:
        """Returns the tenant's events, newest first."""
        async with self._database.tenant(tenant_id) as connection:
            return await audit_store.list_audit_events(connection, tenant_id, after, limit)
