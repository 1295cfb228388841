"""The audit log over the wire."""

import re
from collections.abc import Mapping
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.audit_events import AuditEvent, Filter, recordable, recordable_text
from services.auth.audit_intake import Presented
from services.auth.authenticator import current_trace_id
from services.auth.rpc.messages import MOST_NAME, read_digest, read_time, timestamp
from services.auth.rpc.part import Part
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import current_caller, current_principal

_MOST_METHOD = 200
_MOST_RESOURCES = 32
_MOST_REASON = 200
_MOST_EVENTS = 256
_TRACE_ID = re.compile(r"(?:[0-9a-f]{32})?")


class AuditRpc(Part):
    """The audit log: written and listed."""

    async def ListAuditEvents(
        self, request: pb2.ListAuditEventsRequest, context: Any
    ) -> pb2.ListAuditEventsResponse:
        tenant_id = current_principal().tenant
        size = page_size(request.page_size)
        wanted = _filter(request)
        # Another filter is another list.
        list_name = f"audit {wanted}"
        after = page_position(list_name, tenant_id, request.page_token)
        page = await self._service.audit.page(
            tenant_id, wanted, after[1] if after else None, size + 1
        )
        positions = [(event.at, event.event_id) for event in page.events]
        return pb2.ListAuditEventsResponse(
            events=[audit_event_message(event) for event in page.events[:size]],
            next_page_token=next_page_token(list_name, tenant_id, positions, size),
            head_sequence=page.head_sequence,
            head_hash=page.head_hash,
        )

    async def RecordAuditEvent(
        self, request: pb2.RecordAuditEventRequest, context: Any
    ) -> pb2.RecordAuditEventResponse:
        event_id = await self._service.audit.record(
            current_principal(),
            text("peer", request.peer, most=MOST_NAME),
            _own_method(current_caller().peer, request.method),
            _resources(request.resources),
            current_trace_id(),
        )
        return pb2.RecordAuditEventResponse(event_id=event_id)

    async def RecordAuditEvents(
        self, request: pb2.RecordAuditEventsRequest, context: Any
    ) -> pb2.RecordAuditEventsResponse:
        if not 1 <= len(request.events) <= _MOST_EVENTS:
            raise InvalidFieldError("events", f"must be 1 to {_MOST_EVENTS}")
        service = current_caller().peer
        presented = [_presented(service, event) for event in request.events]
        event_ids = await self._service.intake.record(presented)
        return pb2.RecordAuditEventsResponse(event_ids=[each or "" for each in event_ids])


def _presented(service: str, event: pb2.NewAuditEvent) -> Presented:
    return Presented(
        read_digest("key_digest", event.key_digest),
        text("peer", event.peer, most=MOST_NAME),
        _own_method(service, event.method),
        _resources(event.resources),
        _reason(event.reason),
        _trace_id(event.trace_id),
    )


def _reason(value: str) -> str:
    """Returns the reason as it can be stored; what a person typed refuses no vend."""
    if len(value) > _MOST_REASON:
        raise InvalidFieldError("reason", f"must have at most {_MOST_REASON} characters")
    return recordable_text(value)


def _trace_id(value: str) -> str:
    if not _TRACE_ID.fullmatch(value):
        raise InvalidFieldError("trace_id", "must be 32 hex digits, or empty")
    return value


def _own_method(peer: str, value: str) -> str:
    """Returns the method, which is one of the recording service's own: none speaks for another."""
    method = text("method", value, most=_MOST_METHOD)
    if not method.startswith(f"bulkhead.{peer}.v1."):
        raise InvalidFieldError("method", f"must be one of {peer}'s own")
    return method


def _resources(value: Mapping[str, str]) -> Mapping[str, str]:
    if len(value) > _MOST_RESOURCES:
        raise InvalidFieldError("resources", f"must be at most {_MOST_RESOURCES}")
    return {
        text("resources", kind, most=MOST_NAME): text("resources", named, least=0, most=MOST_NAME)
        for kind, named in recordable(value).items()
    }


def _filter(request: pb2.ListAuditEventsRequest) -> Filter:
    return Filter(
        method=text("method", request.method, least=0, most=_MOST_METHOD) or None,
        key_id=text("key_id", request.key_id, least=0, most=MOST_NAME) or None,
        resource_id=text("resource_id", request.resource_id, least=0, most=MOST_NAME) or None,
        start=read_time("start_time", request.start_time)
        if request.HasField("start_time")
        else None,
        end=read_time("end_time", request.end_time) if request.HasField("end_time") else None,
    )


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
        sequence=event.sequence,
        previous_hash=event.previous_hash,
        hash=event.hash,
        reason=event.reason,
    )
