"""One span, one duration and one canonical log line for each HTTP request."""

import time
from collections.abc import Mapping
from typing import Any, Final

import structlog
from opentelemetry import context, trace
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.app_proxy.door import Guest
from services.app_proxy.mcp_endpoint import GUEST
from services.app_proxy.mcp_tracing import TRACE
from services.shared.recording import (
    CALL_BUCKETS,
    DurationsBy,
    Labels,
    Recording,
    fail,
    incoming,
)

# The headers of W3C Trace Context; what else a request carries is none of a trace's.
_CARRIED: Final = {b"traceparent": "traceparent", b"tracestate": "tracestate"}
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_MOST_NAME: Final = 100
_OUR_FAULT: Final = 500
# Method and status of a request.
_Ended = tuple[str, int]


class Observed:
    """Records requests. Ids go on spans and into logs, never onto metrics; queries go nowhere."""

    def __init__(self, app: ASGIApp, recording: Recording) -> None:
        self._app = app
        self._tracer = recording.tracer()
        self._durations = _durations(recording)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Surrounds the request with its span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, started = _OUR_FAULT, time.perf_counter()

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        span, within = self._entered(scope)
        token = None if within is None else context.attach(within)
        # The SDK handles messages in tasks of its own.
        scope[TRACE] = context.get_current()
        try:
            await self._app(scope, receive, observed_send)
        finally:
            seconds = time.perf_counter() - started
            _write(scope, status, seconds)
            if token is not None:
                context.detach(token)
            if span is not None:
                _describe(span, scope, status)
                span.end()
            if self._durations is not None:
                self._durations.record((_method(scope), status), seconds)

    def _entered(self, scope: Scope) -> tuple[trace.Span | None, context.Context | None]:
        """Returns the request's span, if it has one, and the context that it is to run in."""
        parent = incoming(_carrier(scope))
        if self._tracer is None:
            return None, parent
        method, path = scope["method"], scope["path"]
        span = self._tracer.entry(
            f"{method} {path}"[:_MOST_NAME],
            parent,
            {"http.request.method": method, "url.path": path},
        )
        return span, parent if span is None else trace.set_span_in_context(span, parent)


def _durations(recording: Recording) -> DurationsBy[_Ended] | None:
    meter = recording.meter()
    if meter is None:
        return None
    histogram = meter.create_histogram(
        "http.server.request.duration",
        "s",
        "Time to answer requests of deployments' hosts.",
        explicit_bucket_boundaries_advisory=CALL_BUCKETS,
    )
    return DurationsBy(recording.durations(histogram), _labels)


def _carrier(scope: Scope) -> Mapping[str, str]:
    return {
        _CARRIED[name]: value.decode("latin-1")
        for name, value in scope["headers"]
        if name in _CARRIED
    }


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else "_OTHER"


def _labels(ended: _Ended) -> Labels:
    method, status = ended
    labels = {"http.request.method": method, "http.response.status_code": str(status)}
    return labels | ({"error.type": str(status)} if status >= _OUR_FAULT else {})


def _describe(span: trace.Span, scope: Scope, status: int) -> None:
    if not span.is_recording():
        return
    described: dict[str, Any] = {"http.response.status_code": status}
    guest: Guest | None = scope.get(GUEST)
    if guest is not None:
        described["bulkhead.deployment_id"] = guest.route.deployment_id
        described["bulkhead.tenant_id"] = guest.route.tenant_id
        described["bulkhead.key_id"] = guest.principal.key_id
    span.set_attributes(described)
    if status >= _OUR_FAULT:
        fail(span, str(status))


def _write(scope: Scope, status: int, seconds: float) -> None:
    guest: Guest | None = scope.get(GUEST)
    structlog.get_logger().info(
        "request",
        method=scope["method"],
        path=scope["path"],
        status=status,
        milliseconds=round(seconds * 1_000, 2),
        deployment_id=guest.route.deployment_id if guest else None,
        tenant_id=guest.route.tenant_id if guest else None,
        key_id=guest.principal.key_id if guest else None,
    )
