"""A tenant's own server, to which webhooks are sent."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from standardwebhooks import Webhook

from deploy.local.ports import LOOPBACK

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Report:
    """One request as it came."""

    headers: dict[str, str]
    body: bytes

    @property
    def event_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def content(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body)
        return parsed

    def verified(self, secret: str) -> dict[str, Any]:
        """Returns the report as the library of Standard Webhooks verifies it."""
        checked: dict[str, Any] = Webhook(secret).verify(self.body.decode(), self.headers)
        return checked


@dataclass
class Receiver:
    """Answers with the statuses that it is given, in order, and 204 from then on."""

    port: int
    answers: list[int] = field(default_factory=list)
    # Where a 3xx leads.
    location: str = ""
    reports: list[Report] = field(default_factory=list)
    connections: int = 0
    # Not set: nothing is answered.
    answering: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/hooks"

    async def until(self, enough: Callable[[Sequence[Report]], bool]) -> Sequence[Report]:
        """Returns the reports once they are `enough`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not enough(self.reports):
                self._changed.clear()
                await self._changed.wait()
        return list(self.reports)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = [line.split(": ", 1) for line in head.split("\r\n")[1:-2]]
            headers = {name.lower(): value for name, value in lines}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.reports.append(Report(headers, body))
            self._changed.set()
            await self.answering.wait()
            status = HTTPStatus(self.answers.pop(0) if self.answers else 204)
            writer.write(f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode())
            writer.write(f"location: {self.location}\r\ncontent-length: 0\r\n".encode())
            writer.write(b"connection: close\r\n\r\n")
            await writer.drain()
        writer.close()


@asynccontextmanager
async def receiving(*answers: int, silent: bool = False) -> AsyncIterator[Receiver]:
    """Yields a receiver on a free port of this machine."""
    receiver = Receiver(0, list(answers))
    if not silent:
        receiver.answering.set()
    server = await asyncio.start_server(receiver.serve, LOOPBACK, 0)
    receiver.port = server.sockets[0].getsockname()[1]
    try:
        yield receiver
    finally:
        receiver.answering.set()
        server.close()
