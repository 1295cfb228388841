"""One span, one duration and one canonical log line for each call."""

import time
from contextlib import asynccontextmanager
from typing import Any, Final

import grpc
import structlog
from opentelemetry import context, trace

from services.shared.interceptors.call import Call, Entered
from services.shared.recording import (
    CALL_BUCKETS,
    DurationsBy,
    Labels,
    Recording,
    fail,
    incoming,
)

# Method and code of a call.
Ended = tuple[str, grpc.StatusCode]
# Codes that say that the server, not the caller, is at fault.
_FAULTS: Final = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)


class Telemetry:
    """Records calls. Ids go on spans and into logs, never onto metrics."""

    def __init__(self, recording: Recording) -> None:
        self._tracer = recording.tracer()
        self._durations = _durations(recording)
        self._log = structlog.get_logger()

    @asynccontextmanager
    async def __call__(self, call: Call) -> Entered:
        """Surrounds the call with its span."""
        started = time.perf_counter()
        span, within = self._entered(call)
        token = None if within is None else context.attach(within)
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._write(call, seconds)
            if token is not None:
                context.detach(token)
            if span is not None:
                _describe(span, call)
                span.end()
            if self._durations is not None:
                self._durations.record((call.method, call.code), seconds)

    def _entered(self, call: Call) -> tuple[trace.Span | None, context.Context | None]:
        """Returns the call's span, if it has one, and the context that the call is to run in."""
        parent = incoming(call.metadata)
        if self._tracer is None:
            return None, parent
        span = self._tracer.entry(
            call.method, parent, {"rpc.system.name": "grpc", "rpc.method": call.method}
        )
        return span, parent if span is None else trace.set_span_in_context(span, parent)

    def _write(self, call: Call, seconds: float) -> None:
        principal = call.principal
        # A hot call between services that went well is told by its caller's own line.
        quiet = call.access.keyless and call.code is grpc.StatusCode.OK
        write = self._log.debug if quiet else self._log.info
        write(
            "call",
            method=call.method,
            code=call.code.name,
            reason=call.reason or None,
            milliseconds=round(seconds * 1_000, 2),
            peer=call.peer,
            key_id=principal.key_id if principal else None,
            tenant_id=principal.tenant_id if principal else None,
        )


def labels_of(ended: Ended) -> Labels:
    """Returns what a call's duration is labelled with."""
    method, code = ended
    labels = {
        "rpc.system.name": "grpc",
        "rpc.method": method,
        "rpc.response.status_code": code.name,
    }
    return labels if code is grpc.StatusCode.OK else labels | {"error.type": code.name}


def _describe(span: trace.Span, call: Call) -> None:
    if not span.is_recording():
        return
    described: dict[str, Any] = {
        "rpc.response.status_code": call.code.name,
        "bulkhead.peer": call.peer,
    }
    if call.principal is not None:
        described["bulkhead.key_id"] = call.principal.key_id
        described["bulkhead.tenant_id"] = call.principal.tenant_id or ""
    span.set_attributes(described)
    if call.code in _FAULTS:
        fail(span, call.reason or call.code.name)
    elif call.code is not grpc.StatusCode.OK:
        # The caller's own doing: told, and no failure of ours.
        span.set_attribute("error.type", call.reason or call.code.name)


def _durations(recording: Recording) -> DurationsBy[Ended] | None:
    meter = recording.meter()
    if meter is None:
        return None
    histogram = meter.create_histogram(
        "rpc.server.call.duration",
        "s",
        "Time to answer calls.",
        explicit_bucket_boundaries_advisory=CALL_BUCKETS,
    )
    return DurationsBy(recording.durations(histogram), labels_of)
