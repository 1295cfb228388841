"""What is served over HTTP, below a deployment's host: `/mcp`, `/llms.txt`, `/manifest.json`.

On the API's own hosts there is one path more: where providers lead people back to.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from services.app_proxy.database.catalogue import Catalogue
from services.app_proxy.database.failures import StatementError
from services.app_proxy.database_tools import owner_of
from services.app_proxy.documents import llms_txt, manifest
from services.app_proxy.door import (
    Guest,
    Refusal,
    Visit,
    forbidden,
    suspended,
    unavailable,
    unknown_path,
)
from services.app_proxy.mcp_endpoint import GUEST
from services.app_proxy.oauth import Authorizations, OAuthCallback
from services.app_proxy.schema import Schema
from services.app_proxy.service import Door
from services.app_proxy.tools import Tool, Toolbox
from services.app_proxy.web_middleware import Bounded, Bounds, Draining, refused
from services.app_proxy.web_recording import Observed
from services.shared.errors import BulkheadError, PermissionDeniedError, Reason, UnavailableError
from services.shared.recording import Recording

_SCHEMA_SCOPE = "db:read"


@dataclass(frozen=True, slots=True)
class Callback:
    """Where providers lead people back to."""

    authorizations: Authorizations
    # Of the API, without port.
    hosts: Collection[str]
    most_at_once: int


def web_app(
    door: Door,
    sessions: StreamableHTTPSessionManager,
    catalogue: Catalogue,
    toolbox: Toolbox,
    bounds: Bounds,
    recording: Recording,
    callback: Callback,
    draining: asyncio.Event,
) -> Starlette:
    """Returns the application; every path on a deployment's host needs a key of the deployment."""

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
    middleware = [
        Middleware(Draining, draining=draining),
        Middleware(Observed, recording=recording),
        Middleware(
            OAuthCallback,
            authorizations=callback.authorizations,
            hosts=callback.hosts,
            most_at_once=callback.most_at_once,
        ),
        Middleware(Guarded, door=door),
        Middleware(Bounded, bounds=bounds),
    ]
    handlers = {404: _not_found}
    app = Starlette(
        routes=routes, middleware=middleware, lifespan=lifespan, exception_handlers=handlers
    )
    # A path with a slash too many is another path, and a redirect would name a scheme and host
    # that are not the front door's.
    app.router.redirect_slashes = False
    return app


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
            await refused(verdict, request)(scope, receive, send)
            return
        scope[GUEST] = verdict
        await self._app(scope, receive, send)


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
            return refused(forbidden(_SCHEMA_SCOPE), request)
        try:
            schema = await self._catalogue.schema(owner_of(guest))
        except (BulkheadError, StatementError) as error:
            return refused(refusal_of(error), request)
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


def refusal_of(error: BulkheadError | StatementError) -> Refusal:
    """Returns how it is said that the schema cannot be read."""
    if isinstance(error, PermissionDeniedError):
        return forbidden(_SCHEMA_SCOPE)
    if isinstance(error, BulkheadError) and error.reason is Reason.DEPLOYMENT_SUSPENDED:
        # Suspended since the door looked.
        return suspended()
    if isinstance(error, UnavailableError | StatementError):
        known = error if isinstance(error, UnavailableError) else UnavailableError("the database")
        return unavailable(known)
    return unknown_path()


async def _not_found(request: Request, _error: Exception) -> Response:
    return refused(unknown_path(), request)
