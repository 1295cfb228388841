"""Passes bytes between two connections, no faster than the slower one takes them."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

# What waits in this process for a slow reader, in each direction; the sockets hold some more.
_HIGH_WATER_BYTES = 256 * 1024
# A peer that is gone without a word is noticed after about two minutes.
_KEEPALIVE_SECONDS = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


class End(asyncio.Protocol):
    """One end of a relay: what comes in here goes out at the other end."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sets the connection up; see asyncio.Protocol for all of these."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(_HIGH_WATER_BYTES)
        _set_options(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """Passes it on."""
        if self.other is not None:
            self.other.write(data)

    def pause_writing(self) -> None:
        """Lets nothing more come in at the other end: here it is not taken fast enough."""
        if self.other is not None and not self.other.is_closing():
            self.other.pause_reading()

    def resume_writing(self) -> None:
        """Goes on."""
        if self.other is not None and not self.other.is_closing():
            self.other.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the other end too, after what is still to be sent there; after a reset at once."""
        if self.other is None:
            return
        if error is None:
            self.other.close()
        else:
            self.other.abort()

    def end(self) -> None:
        """Ends it after what is still to be sent."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """Ends it at once."""
        if self.transport is not None:
            self.transport.abort()


class ServerEnd(End):
    """The end at the server. When that says no more, everything is over."""

    def __init__(self) -> None:
        super().__init__()
        # Learns what the server says, as long as somebody has to know.
        self.listener: Callable[[bytes], None] | None = None

    def data_received(self, data: bytes) -> None:
        """Passes it on, unless whoever listens has ended the client."""
        if self.listener is not None:
            self.listener(data)
        if self.other is not None and not self.other.is_closing():
            self.other.write(data)


class ClientEnd(End):
    """The end at the client, which may have said all and still listen."""

    def eof_received(self) -> bool:
        """Tells the server; returns that this end stays open."""
        if self.other is None:
            return False
        if not self.other.is_closing() and self.other.can_write_eof():
            self.other.write_eof()
        return True


def join(client: ClientEnd, server: ServerEnd) -> None:
    """Lets whatever comes in at one end go out at the other, from now on."""
    client.other, server.other = server.transport, client.transport


def _set_options(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE_SECONDS:
        # Not every system has all of them.
        if (option := getattr(socket, name, None)) is not None:
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
