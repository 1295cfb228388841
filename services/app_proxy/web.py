"""What a deployment's host serves over HTTP: `/mcp`, `/llms.txt`, `/manifest.json`."""

import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager

import structlog
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.app_proxy.database.catalogue import Catalogue
from services.app_proxy.database.executor import Owner
from services.app_proxy.database.failures import StatementError
from services.app_proxy.documents import llms_txt, manifest
from services.app_proxy.door import (
    Guest,
    Refusal,
    Visit,
    forbidden,
    unavailable,
    unknown_path,
)
from services.app_proxy.mcp_endpoint import GUEST
from services.app_proxy.problems import answer_to
from services.app_proxy.schema import Schema
from services.app_proxy.service import Door
from services.app_proxy.tools import Tool, Toolbox
from services.shared.errors import BulkheadError, PermissionDeniedError, UnavailableError

_SCHEMA_SCOPE = "db:read"


def web_app(
    door: Door, sessions: StreamableHTTPSessionManager, catalogue: Catalogue, toolbox: Toolbox
) -> Starlette:
    """Returns the application; every path of it needs a key of the host's deployment."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        async with sessions.run():
            yield

    documents = Documents(catalogue, toolbox)
    routes = [
        Route("/mcp", endpoint=McpEndpoint(sessions)),
        Route("/llms.txt", endpoint=documents.llms_txt),
        Route("/manifest.json", endpoint=documents.manifest),
    ]
    middleware = [Middleware(Observed), Middleware(Guarded, door=door)]
    handlers = {404: _not_found}
    return Starlette(
        routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=handlers
    )


class McpEndpoint:
    """POST alone: without sessions there is no stream to open and none to end."""

    def __init__(self, sessions: StreamableHTTPSessionManager) -> None:
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a POST to the SDK."""
        if scope["method"] == "POST":
            await self._sessions.handle_request(scope, receive, send)
        else:
            await Response(status_code=405, headers={"allow": "POST"})(scope, receive, send)


class Guarded:
    """Checks host, route, key and binding once more, whatever came before us (P-04).

    The limit was taken at the door and is not taken twice.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on whoever may enter, with the guest in the scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        verdict = await self._door.identify(_visit(request))
        if isinstance(verdict, Guest) and not verdict.route.mcp:
            verdict = unknown_path()
        if isinstance(verdict, Refusal):
            await _response(verdict, request)(scope, receive, send)
            return
        scope[GUEST] = verdict
        await self._app(scope, receive, send)


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


class Documents:
    """`/llms.txt` and `/manifest.json`, as the schema is now."""

    def __init__(self, catalogue: Catalogue, toolbox: Toolbox) -> None:
        self._catalogue = catalogue
        self._toolbox = toolbox

    async def llms_txt(self, request: Request) -> Response:
        """Returns the deployment's `llms.txt`."""

        def render(guest: Guest, schema: Schema, tools: list[Tool]) -> str:
            return llms_txt(guest.route.name, schema, tools)

        return await self._document(request, "text/plain; charset=utf-8", render)

    async def manifest(self, request: Request) -> Response:
        """Returns the deployment's manifest."""

        def render(guest: Guest, schema: Schema, tools: list[Tool]) -> str:
            return json.dumps(manifest(guest.route.name, schema, tools), ensure_ascii=False)

        return await self._document(request, "application/json", render)

    async def _document(
        self,
        request: Request,
        media_type: str,
        render: Callable[[Guest, Schema, list[Tool]], str],
    ) -> Response:
        guest: Guest = request.scope[GUEST]
        if not guest.principal.permits(_SCHEMA_SCOPE):
            return _response(forbidden(_SCHEMA_SCOPE), request)
        try:
            schema = await self._catalogue.schema(Owner(guest.route.deployment_id, guest.key))
        except (BulkheadError, StatementError) as error:
            return _response(_refusal(error), request)
        tools = await self._toolbox.listed(guest)
        names = "-".join(tool.name for tool in tools)
        headers = {"etag": f'"{schema.fingerprint}-{names}"', "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(render(guest, schema, tools), headers=headers, media_type=media_type)


def _visit(request: Request) -> Visit:
    # Joined, as HTTP joins repeated headers: two keys are no key.
    authorization = ",".join(request.headers.getlist("authorization")) or None
    hosts = request.headers.getlist("host")
    return Visit(hosts[0] if len(hosts) == 1 else "", authorization)


def _refusal(error: BulkheadError | StatementError) -> Refusal:
    if isinstance(error, PermissionDeniedError):
        return forbidden(_SCHEMA_SCOPE)
    if isinstance(error, UnavailableError | StatementError):
        known = error if isinstance(error, UnavailableError) else UnavailableError("the database")
        return unavailable(known)
    return unknown_path()


def _response(refusal: Refusal, request: Request) -> Response:
    answer = answer_to(refusal, request.headers.get("accept"))
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


async def _not_found(request: Request, _error: Exception) -> Response:
    return _response(unknown_path(), request)


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
