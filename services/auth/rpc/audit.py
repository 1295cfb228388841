"""The audit log over the wire."""

from collections.abc import Mapping
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.authenticator import current_trace_id
from services.auth.domain import AuditEvent
from services.auth.rpc.messages import MOST_NAME, timestamp
from services.auth.rpc.part import Part
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import current_principal

_AUDIT_LIST = "audit"
_MOST_METHOD = 200
_MOST_RESOURCES = 32


class AuditRpc(Part):
    """The audit log: written and listed."""

    async def ListAuditEvents(
        self, request: pb2.ListAuditEventsRequest, context: Any
    ) -> pb2.ListAuditEventsResponse:
        tenant_id = current_principal().tenant
        size = page_size(request.page_size)
        events = await self._service.audit.page(
            tenant_id, page_position(_AUDIT_LIST, tenant_id, request.page_token), size + 1
        )
        positions = [(event.at, event.event_id) for event in events]
        return pb2.ListAuditEventsResponse(
            events=[audit_event_message(event) for event in events[:size]],
            next_page_token=next_page_token(_AUDIT_LIST, tenant_id, positions, size),
        )

    async def RecordAuditEvent(
        self, request: pb2.RecordAuditEventRequest, context: Any
    ) -> pb2.RecordAuditEventResponse:
        event_id = await self._service.audit.record(
            current_principal(),
            text("peer", request.peer, most=MOST_NAME),
            text("method", request.method, most=_MOST_METHOD),
            _resources(request.resources),
            current_trace_id(),
        )
        return pb2.RecordAuditEventResponse(event_id=event_id)


def _resources(value: Mapping[str, str]) -> Mapping[str, str]:
    if len(value) > _MOST_RESOURCES:
        raise InvalidFieldError("resources", f"must be at most {_MOST_RESOURCES}")
    return {
        text("resources", kind, most=MOST_NAME): text(
            "resources", _printable(name), least=0, most=MOST_NAME
        )
        for kind, name in value.items()
    }


def _printable(value: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in value)


def audit_event_message(event: AuditEvent) -> pb2.AuditEvent:
    """Returns the event as a message."""
    return pb2.AuditEvent(
        event_id=event.event_id,
        time=timestamp(event.at),
        key_id=event.key_id,
        peer=event.peer,
        method=event.method,
        resources=dict(event.resources),
        trace_id=event.trace_id,
    )
