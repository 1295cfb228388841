"""Whoever comes to a deployment's host from outside: over plain HTTP, or as an agent over MCP.

`*.localhost` means the loopback interface (RFC 6761), but not every resolver knows. So the client
connects to 127.0.0.1 and says the deployment's host in the request, as a browser does.
"""

import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.types import CallToolResult

from deploy.local.ports import LOOPBACK

_SECONDS = 20.0
# What the door itself answers: not let in.
_TURNED_AWAY = frozenset({401, 404, 429, 503})


class LoopbackTransport(httpx2.AsyncHTTPTransport):
    """Connects to 127.0.0.1 whatever the host of the URL is; the request itself is unchanged."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Returns the answer of whoever listens on the loopback interface."""
        rerouted = httpx2.Request(
            request.method,
            request.url.copy_with(host=LOOPBACK),
            headers=request.headers,
            stream=request.stream,
            extensions=request.extensions,
        )
        return await super().handle_async_request(rerouted)


@dataclass(slots=True)
class TraceMark:
    """Marks requests as parts of traces (W3C Trace Context), each of its own unless told."""

    trace_id: str = field(default_factory=lambda: secrets.token_hex(16))

    def renew(self) -> str:
        """Returns the trace id of the requests from now on."""
        self.trace_id = secrets.token_hex(16)
        return self.trace_id

    async def __call__(self, request: httpx2.Request) -> None:
        """Writes the mark."""
        request.headers["traceparent"] = f"00-{self.trace_id}-{secrets.token_hex(8)}-01"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Someone at the host of a deployment, with or without a key."""

    host: str
    port: int
    http: httpx2.AsyncClient
    mark: TraceMark

    @property
    def url(self) -> str:
        """The deployment as people write it."""
        return f"http://{self.host}:{self.port}"

    async def get(self, path: str) -> httpx2.Response:
        """Returns the answer to a GET."""
        return await self.http.get(f"{self.url}{path}")

    @asynccontextmanager
    async def agent(self) -> AsyncIterator["Agent"]:
        """Yields an agent that has connected over MCP by the official client."""
        transport = streamable_http_client(
            f"{self.url}/mcp", http_client=self.http, terminate_on_close=False
        )
        async with Client(transport, read_timeout_seconds=_SECONDS) as client:
            yield Agent(client, self.mark)


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that is connected to a deployment."""

    client: Client
    mark: TraceMark

    async def call(self, tool: str, sql: str, *params: Any) -> CallToolResult:
        """Returns what the tool answers; values travel beside the statement, never inside."""
        return await self.client.call_tool(tool, {"sql": sql, "params": list(params)})


@asynccontextmanager
async def visiting(
    host: str, port: int, key: str = "", served: Counter[str] | None = None
) -> AsyncIterator[Visitor]:
    """Yields a visitor of `host` at the front door's `port` who presents `key`.

    Args:
        host: the deployment's host name.
        port: where the front door listens.
        key: empty: no key is presented.
        served: counts, by host, the answers to requests that were let in.
    """
    mark = TraceMark()

    async def count(answer: httpx2.Response) -> None:
        if served is not None and answer.status_code not in _TURNED_AWAY:
            served[host] += 1

    async with httpx2.AsyncClient(
        transport=LoopbackTransport(),
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=httpx2.Timeout(_SECONDS),
        event_hooks={"request": [mark], "response": [count]},
        trust_env=False,
    ) as http:
        yield Visitor(host, port, http, mark)
