"""TLS before the real Postgres and the real Valkey, whose own programs here are built without."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from functools import partial

from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK

# What a Postgres client asks first, and the answer that goes on with TLS.
_ASKS_FOR_TLS = bytes.fromhex("0000000804d2162f")
_YES = b"S"


@asynccontextmanager
async def before_postgres(port: int, files: Paths) -> AsyncIterator[int]:
    """Yields the port at which the Postgres of `port` answers by TLS."""

    async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError, asyncio.IncompleteReadError):
            assert await reader.readexactly(len(_ASKS_FOR_TLS)) == _ASKS_FOR_TLS
            writer.write(_YES)
            await writer.drain()
            await writer.start_tls(_context(files))
            await _passed_on(port, reader, writer)

    async with await asyncio.start_server(front, LOOPBACK, 0) as server:
        yield server.sockets[0].getsockname()[1]


@asynccontextmanager
async def before_valkey(port: int, files: Paths) -> AsyncIterator[int]:
    """Yields the port at which the Valkey of `port` answers by TLS."""

    async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(OSError):
            await _passed_on(port, reader, writer)

    server = await asyncio.start_server(front, LOOPBACK, 0, ssl=_context(files))
    async with server:
        yield server.sockets[0].getsockname()[1]


def _context(files: Paths) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.authority)
    context.load_cert_chain(files.certificate, files.key)
    # Whoever presents something presents something of the same authority.
    context.verify_mode = ssl.CERT_OPTIONAL
    return context


async def _passed_on(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    store_reader, store_writer = await asyncio.open_connection(LOOPBACK, port)
    with closing(store_writer):
        ways = (partial(_copied, reader, store_writer), partial(_copied, store_reader, writer))
        copies = [asyncio.create_task(way()) for way in ways]
        try:
            await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for copy in copies:
                copy.cancel()
            await asyncio.gather(*copies, return_exceptions=True)


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while part := await reader.read(1 << 16):
        writer.write(part)
        await writer.drain()
