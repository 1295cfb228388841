"""An OAuth 2 authorization server on loopback, with an API behind it: for the demo and for tests.

Real in all but its memory: Authlib serves the authorization code grant with PKCE, rotating refresh
tokens whose reuse ends the grant, client credentials, revocation (RFC 7009) and introspection
(RFC 7662). It runs in the event loop that asks for it, and forgets everything at the end.
"""

import asyncio
import html
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlencode

import uvicorn
from authlib.oauth2 import OAuth2Error
from starlette.applications import Starlette
from starlette.requests import Request as WebRequest
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from deploy.local.authorization_grants import Request, Server
from deploy.local.authorization_state import PERSON, Client, Rules, State, new_client
from deploy.local.ports import LOOPBACK

SCOPES = ("read", "write", "admin")
_FORM = "application/x-www-form-urlencoded"
_DECISION = "decision"
_ALLOW = "allow"

_PROVIDER = """\
# The authorization server on loopback.
name: {name}
title: {title}
source: https://www.rfc-editor.org/rfc/rfc6749
kinds: [authorization_code, client_credentials, static_token, api_key]
api_base_url: {url}/api
oauth:
  authorize_url: {url}/authorize
  token_url: {url}/token
  revoke_url: {url}/revoke
  introspect_url: {introspect}
  default_scopes: [read, write]
  client_authentication: basic
  refresh_rotation: {rotation}
  narrows_scopes: true
"""


@dataclass(frozen=True, slots=True)
class AuthorizationServer:
    """The running server."""

    # Without a slash at the end.
    url: str
    state: State

    @property
    def client(self) -> Client:
        """The OAuth client that it knows."""
        return self.state.client

    @property
    def rules(self) -> Rules:
        """How it goes about it; may be changed."""
        return self.state.rules

    def provider_yaml(
        self, name: str = "loopback", *, introspects: bool = True, rotation: str = "rotates"
    ) -> str:
        """Returns the file by which a catalogue knows it; to be called `<name>.yaml`."""
        return provider_yaml(self.url, name, introspects=introspects, rotation=rotation)

    def clients_yaml(self, name: str = "loopback") -> str:
        """Returns the file with its client for an operator; to be kept to oneself."""
        return (
            f"{name}:\n  client_id: {self.client.client_id}\n"
            f"  client_secret: {self.client.client_secret}\n"
        )


def provider_yaml(
    url: str, name: str = "loopback", *, introspects: bool = True, rotation: str = "rotates"
) -> str:
    """Returns a catalogue's file for the server at `url`."""
    return _PROVIDER.format(
        name=name,
        title=name.replace("-", " ").title(),
        url=url,
        introspect=f"{url}/introspect" if introspects else '""',
        rotation=rotation,
    )


@asynccontextmanager
async def running_authorization_server(
    *,
    redirect_urls: Sequence[str] = ("http://localhost:8080/oauth/callback",),
    scopes: Sequence[str] = SCOPES,
    rules: Rules | None = None,
    port: int = 0,
    mark: str = "",
) -> AsyncIterator[AuthorizationServer]:
    """Yields the server, at a free port of loopback unless one is given.

    Every secret that it makes begins with `mark`.

    Raises:
        OSError: the port is taken.
    """
    state = State(new_client(redirect_urls, scopes, mark), rules or Rules(), mark=mark)
    listener = socket.create_server((LOOPBACK, port))
    async with _serving(_application(state), listener):
        yield AuthorizationServer(f"http://{LOOPBACK}:{listener.getsockname()[1]}", state)


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The process's signals are whoever's it is.
        yield


@asynccontextmanager
async def _serving(app: Starlette, listener: socket.socket) -> AsyncIterator[None]:
    # The socket listens already: what comes before the server is ready waits for it.
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = _Uvicorn(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _application(state: State) -> Starlette:
    faces = _Faces(state, Server(state))
    return Starlette(
        routes=[
            Route("/authorize", faces.authorize, methods=["GET", "POST"]),
            Route("/token", faces.token, methods=["POST"]),
            Route("/revoke", faces.revoke, methods=["POST"]),
            Route("/introspect", faces.introspect, methods=["POST"]),
            Route("/api/whoami", faces.whoami),
        ]
    )


@dataclass(frozen=True, slots=True)
class _Faces:
    """What the server answers at which path."""

    state: State
    server: Server

    async def authorize(self, request: WebRequest) -> Response:
        """Leads back with a code, or shows a page on which a person decides."""
        asked = await _asked(request)
        self.state.seen["authorize"] += 1
        try:
            grant = self.server.get_consent_grant(asked, end_user=PERSON)  # type: ignore[no-untyped-call]
        except OAuth2Error as error:
            return self._shown(asked, error)
        decision = _ALLOW if self.state.rules.auto_consent else asked.form.get(_DECISION)
        if decision is None:
            return HTMLResponse(_page(self.state.client, asked))
        person = PERSON if decision == _ALLOW else None
        answer: Response = self.server.create_authorization_response(asked, person, grant)  # type: ignore[assignment]
        return answer

    async def token(self, request: WebRequest) -> Response:
        """Gives tokens for a code, a refresh token or a client."""
        self.state.seen["token"] += 1
        answer: Response = self.server.create_token_response(await _asked(request))  # type: ignore[assignment]
        self.state.seen[f"token {answer.status_code}"] += 1
        return answer

    async def revoke(self, request: WebRequest) -> Response:
        """Withdraws a token."""
        return self._endpoint("revocation", await _asked(request))

    async def introspect(self, request: WebRequest) -> Response:
        """Says whether a token is good."""
        return self._endpoint("introspection", await _asked(request))

    async def whoami(self, request: WebRequest) -> Response:
        """Says what the presented access token is good for."""
        self.state.seen["call"] += 1
        _, _, presented = request.headers.get("authorization", "").partition("Bearer ")
        token = self.state.access_tokens.get(presented)
        if token is None or not token.good:
            return JSONResponse({"error": "invalid_token"}, 401)
        return JSONResponse(
            {"client_id": token.family.client_id, "scopes": sorted(token.scope.split())}
        )

    def _endpoint(self, name: str, asked: Request) -> Response:
        answer: Response = self.server.create_endpoint_response(name, asked)  # type: ignore[no-untyped-call]
        return answer

    def _shown(self, asked: Request, error: OAuth2Error) -> Response:
        answer: Response = self.server.handle_error_response(asked, error)  # type: ignore[assignment]
        return answer


async def _asked(request: WebRequest) -> Request:
    is_form = request.headers.get("content-type", "").startswith(_FORM)
    body = (await request.body()).decode() if is_form else ""
    return Request(
        request.method,
        str(request.url),
        request.headers,
        parse_qsl(request.url.query),
        parse_qsl(body),
    )


def _page(client: Client, asked: Request) -> str:
    again = html.escape(f"?{urlencode(asked.args)}")
    scopes = html.escape(asked.args.get("scope") or "")
    return (
        f"<!doctype html><title>Allow?</title><h1>Allow {html.escape(client.client_id)}?</h1>"
        f'<p>It asks for: {scopes}</p><form method="post" action="{again}">'
        f'<button name="{_DECISION}" value="{_ALLOW}">Allow</button>'
        f'<button name="{_DECISION}" value="deny">Deny</button></form>'
    )
