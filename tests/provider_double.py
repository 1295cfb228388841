"""A double of a provider's ways to fail: a real authorization server behind a door that misbehaves.

The door takes one request a connection, as our client sends them, and hands it to the server behind
it, byte by byte, unless the next fault of its path says otherwise.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from deploy.local.authorization_server import (
    AuthorizationServer,
    provider_yaml,
    running_authorization_server,
)
from deploy.local.authorization_state import Client, Rules, State
from tests.canaries import MARK

_LOOPBACK = "127.0.0.1"

Forward = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Wire:
    """One request that arrived, and the connection that waits for its answer."""

    forward: Forward
    writer: asyncio.StreamWriter


Fault = Callable[[Wire], Awaitable[None]]


def answers(status: int, body: str = "", **headers: str) -> Fault:
    """Answers so, and the server behind hears nothing of it."""

    async def fault(wire: Wire) -> None:
        wire.writer.write(raw_answer(status, body, **headers))

    return fault


def refuses(error: str, status: int = 400) -> Fault:
    """Answers with an error of RFC 6749, 5.2."""
    return answers(status, f'{{"error": "{error}"}}', content_type="application/json")


def drops_before() -> Fault:
    """Closes the connection; the server behind hears nothing of it."""

    async def fault(wire: Wire) -> None:
        wire.writer.close()

    return fault


def drops_after() -> Fault:
    """Closes the connection once the server behind has done what it was asked for."""

    async def fault(wire: Wire) -> None:
        await wire.forward()
        wire.writer.close()

    return fault


def truncates() -> Fault:
    """Ends the server's answer half-way."""

    async def fault(wire: Wire) -> None:
        answer = await wire.forward()
        wire.writer.write(answer[: -len(answer.partition(b"\r\n\r\n")[2]) // 2])

    return fault


def replaces(body: str, status: int = 200, content_type: str = "application/json") -> Fault:
    """Answers so, once the server behind has done what it was asked for."""

    async def fault(wire: Wire) -> None:
        await wire.forward()
        wire.writer.write(raw_answer(status, body, content_type=content_type))

    return fault


def waits(event: asyncio.Event) -> Fault:
    """Hands the request on, and keeps the answer until `event` is set."""

    async def fault(wire: Wire) -> None:
        answer = await wire.forward()
        await event.wait()
        wire.writer.write(answer)

    return fault


def hangs(event: asyncio.Event) -> Fault:
    """Does nothing until `event` is set, then hands the request on: the caller may have left."""

    async def fault(wire: Wire) -> None:
        await event.wait()
        wire.writer.write(await wire.forward())

    return fault


@dataclass
class ProviderDouble:
    """The door; `server` is what is behind it."""

    server: AuthorizationServer
    url: str = ""
    # What happens to the next requests of a path, in order; then all are handed on.
    faults: dict[str, deque[Fault]] = field(default_factory=dict)
    # Requests by path.
    seen: Counter[str] = field(default_factory=Counter)

    def next(self, path: str, *faults: Fault) -> None:
        """Makes the next requests of `path`, as `/token`, meet these faults."""
        self.faults.setdefault(path, deque()).extend(faults)

    @property
    def client(self) -> Client:
        """The OAuth client that the server knows."""
        return self.server.client

    @property
    def rules(self) -> Rules:
        """How the server goes about it; may be changed."""
        return self.server.rules

    @property
    def state(self) -> State:
        """What the server remembers."""
        return self.server.state

    def provider_yaml(
        self, name: str = "loopback", *, introspects: bool = True, rotation: str = "rotates"
    ) -> str:
        """Returns the catalogue's file for the server, by way of the door."""
        return provider_yaml(self.url, name, introspects=introspects, rotation=rotation)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Takes one request."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            path, request = await _request(reader)
            self.seen[path] += 1
            waiting = self.faults.get(path)
            fault = waiting.popleft() if waiting else _hand_on
            await fault(Wire(lambda: self._behind(request), writer))
            await writer.drain()
        writer.close()

    async def _behind(self, request: bytes) -> bytes:
        port = int(self.server.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection(_LOOPBACK, port)
        writer.write(request)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def running_provider(
    *,
    redirect_urls: Sequence[str] = ("http://localhost:8080/oauth/callback",),
    rules: Rules | None = None,
) -> AsyncIterator[ProviderDouble]:
    """Yields the double, with an authorization server of its own behind it.

    No secret that it makes may be in any test's output.
    """
    async with running_authorization_server(
        redirect_urls=redirect_urls, rules=rules, mark=f"{MARK}-"
    ) as server:
        double = ProviderDouble(server)
        tasks: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(double.serve(reader, writer))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        door = await asyncio.start_server(accept, _LOOPBACK, 0)
        double.url = f"http://{_LOOPBACK}:{door.sockets[0].getsockname()[1]}"
        try:
            yield double
        finally:
            door.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def raw_answer(status: int, body: str, **headers: str) -> bytes:
    """Returns an answer of HTTP/1.1; `_` in the names of headers stands for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named |= {"content-length": str(len(body.encode())), "connection": "close"}
    lines = [f"HTTP/1.1 {status} Double", *(f"{name}: {value}" for name, value in named.items())]
    return "\r\n".join([*lines, "", body]).encode()


async def _hand_on(wire: Wire) -> None:
    wire.writer.write(await wire.forward())


async def _request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    kept = [line for line in lines if line and not line.lower().startswith("connection:")]
    length = next((line for line in kept if line.lower().startswith("content-length:")), ":0")
    body = await reader.readexactly(int(length.partition(":")[2]))
    path = first.split(" ")[1].partition("?")[0]
    head = "\r\n".join([first, *kept, "connection: close", "", ""]).encode("latin-1")
    return path, head + body
