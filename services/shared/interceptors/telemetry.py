"""One span, one duration and one canonical log line for each call."""

import time
from contextlib import asynccontextmanager

import grpc
import structlog
from opentelemetry import metrics, propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.shared.interceptors.call import Call, Entered

# Codes that say that the server, not the caller, is at fault.
_FAULTS = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
    }
)
# `rpc.server.call.duration` of the semantic conventions, in seconds.
_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]


class Telemetry:
    """Records calls. Ids go on spans and into logs, never onto metrics."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("bulkhead")
        self._duration = metrics.get_meter("bulkhead").create_histogram(
            "rpc.server.call.duration", unit="s", explicit_bucket_boundaries_advisory=_BUCKETS
        )
        self._log = structlog.get_logger()

    @asynccontextmanager
    async def __call__(self, call: Call) -> Entered:
        """Surrounds the call with its span."""
        started = time.perf_counter()
        with self._tracer.start_as_current_span(
            call.method,
            context=propagate.extract(call.metadata),
            kind=SpanKind.SERVER,
            attributes={"rpc.system.name": "grpc", "rpc.method": call.method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            finally:
                seconds = time.perf_counter() - started
                self._describe(span, call)
                self._duration.record(
                    seconds,
                    {
                        "rpc.system.name": "grpc",
                        "rpc.method": call.method,
                        "rpc.response.status_code": call.code.name,
                    },
                )
                self._write(call, seconds)

    def _describe(self, span: trace.Span, call: Call) -> None:
        if not span.is_recording():
            return
        span.set_attribute("rpc.response.status_code", call.code.name)
        span.set_attribute("bulkhead.peer", call.peer)
        if call.principal is not None:
            span.set_attribute("bulkhead.key_id", call.principal.key_id)
            span.set_attribute("bulkhead.tenant_id", call.principal.tenant_id or "")
        if call.reason:
            span.set_attribute("error.type", call.reason)
        if call.code in _FAULTS:
            span.set_status(Status(StatusCode.ERROR))

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
