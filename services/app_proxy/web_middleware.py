"""What surrounds every HTTP request: a bound on how many there are."""

import asyncio
from collections import Counter
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.app_proxy.door import Guest, Refusal, overloaded
from services.app_proxy.mcp_endpoint import GUEST
from services.app_proxy.problems import answer_to
from services.shared.ids import DeploymentId

# Where the front door asks whether we take requests.
HEALTH_HOST, HEALTH_PATH = "app_proxy", "/health"


def refused(refusal: Refusal, request: Request) -> Response:
    """Returns the HTTP answer that says `refusal`."""
    answer = answer_to(refusal, request.headers.get("accept"))
    return Response(answer.body, status_code=answer.status, headers=dict(answer.headers))


@dataclass(frozen=True, slots=True)
class Bounds:
    """How many requests may be in flight."""

    process: int
    deployment: int


class Draining:
    """Tells the front door whether this process takes requests, and lets it go when it does not.

    A connection that is simply closed may have the next request on its way.
    """

    def __init__(self, app: ASGIApp, draining: asyncio.Event) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the front door's own question; sets `Connection: close` on other answers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _asks_for_health(Request(scope)):
            await Response(status_code=503 if self._draining.is_set() else 200)(
                scope, receive, send
            )
        else:
            await self._app(scope, receive, self._last(send))

    def _last(self, send: Send) -> Send:
        async def send_last(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining.is_set():
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return send_last


def _asks_for_health(request: Request) -> bool:
    # No deployment has a host of one word, nor has the API one that the front door would pass on.
    return request.url.path == HEALTH_PATH and request.headers.get("host") == HEALTH_HOST


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
