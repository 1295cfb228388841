"""What surrounds every HTTP request: a span, a log line, and a bound on how many there are."""

import time
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass

import structlog
from opentelemetry import context, propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.app_proxy.door import Guest, Refusal, overloaded
from services.app_proxy.mcp_endpoint import GUEST
from services.app_proxy.mcp_tracing import TRACE
from services.app_proxy.problems import answer_to
from services.shared.ids import DeploymentId


def refused(refusal: Refusal, request: Request) -> Response:
    """Returns the HTTP answer that says `refusal`."""
    answer = answer_to(refusal, request.headers.get("accept"))
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many requests may be in flight."""

    process: int
    deployment: int


class Bounded:
    """Refuses what is too much, so that one deployment leaves room for its neighbours (P-38)."""

    def __init__(self, app: ASGIApp, bounds: Bounds) -> None:
        self._app = app
        self._bounds = bounds
        self._in_flight: Counter[DeploymentId] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on the guest's request, or answers 503 with Retry-After."""
        guest: Guest | None = scope.get(GUEST)
        if guest is None:
            await self._app(scope, receive, send)
            return
        deployment = guest.route.deployment_id
        if self._is_full(deployment):
            await refused(overloaded(), Request(scope))(scope, receive, send)
            return
        self._in_flight[deployment] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_flight[deployment] -= 1
            if not self._in_flight[deployment]:
                del self._in_flight[deployment]

    def _is_full(self, deployment: DeploymentId) -> bool:
        own = self._in_flight[deployment]
        return own >= self._bounds.deployment or self._in_flight.total() >= self._bounds.process


class Observed:
    """One span and one canonical log line for each request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._tracer = trace.get_tracer("bulkhead")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Surrounds the request with its span."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def observed_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        started = time.perf_counter()
        with self._span(scope) as span:
            # The SDK handles messages in tasks of its own.
            scope[TRACE] = context.get_current()
            try:
                await self._app(scope, receive, observed_send)
            finally:
                _describe(span, scope, status)
                _write(scope, status, time.perf_counter() - started)

    def _span(self, scope: Scope) -> AbstractContextManager[trace.Span]:
        headers = Request(scope).headers
        return self._tracer.start_as_current_span(
            f"{scope['method']} {scope['path']}",
            context=propagate.extract(dict(headers)),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": scope["method"], "url.path": scope["path"]},
            record_exception=False,
            set_status_on_exception=False,
        )


def _describe(span: trace.Span, scope: Scope, status: int) -> None:
    if not span.is_recording():
        return
    span.set_attribute("http.response.status_code", status)
    guest: Guest | None = scope.get(GUEST)
    if guest is not None:
        span.set_attribute("bulkhead.deployment_id", guest.route.deployment_id)
        span.set_attribute("bulkhead.tenant_id", guest.route.tenant_id)
        span.set_attribute("bulkhead.key_id", guest.principal.key_id)
    if status >= 500:  # noqa: PLR2004 our faults begin here
        span.set_status(Status(StatusCode.ERROR))


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
