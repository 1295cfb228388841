"""Waiting for what another process does, with a bound."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from deploy.envoy.settings import Address

POLL_SECONDS = 0.02
_ANSWER_SECONDS = 1.0


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Returns once `condition` holds.

    Raises:
        TimeoutError: it did not hold within `seconds`.
    """
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(POLL_SECONDS)


async def answers(address: Address, path: str, status: HTTPStatus) -> bool:
    """Whether a server answers a GET of `path` with `status`, in plaintext, within a second.

    By hand: a client of HTTP takes as long to be imported as all that a command does.
    """
    request = f"GET {path} HTTP/1.1\r\nhost: {address.host}\r\nconnection: close\r\n\r\n"
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            reader, writer = await asyncio.open_connection(address.host, address.port)
            with contextlib.closing(writer):
                writer.write(request.encode())
                return f" {status.value} ".encode() in await reader.readline()
    except (OSError, TimeoutError):
        return False
