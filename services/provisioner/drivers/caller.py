"""Whoever connects to a database's public port, from the first byte on."""

import asyncio
from typing import Protocol, assert_never

from services.provisioner.drivers import relay
from services.provisioner.drivers.login_watch import Heard, LoginWatch
from services.provisioner.drivers.postgres_wire import (
    UNENCRYPTED,
    CancelRequest,
    EncryptionRequest,
    Packet,
    Startup,
    WireError,
    first_packet,
)

# How long one may take to say who it is.
_NAMELESS_SECONDS = 5.0
# Each way of encryption can be asked for once.
_MOST_QUESTIONS = 2


class Host(Protocol):
    """Whom callers come to."""

    def entered(self, caller: "Caller") -> None:
        """Lets the caller say who it is."""
        ...

    def named(self, caller: "Caller", startup: Startup) -> None:
        """Learns who the caller is; has it joined or refused, at once or later."""
        ...

    def asked(self, caller: "Caller") -> None:
        """Learns that the caller has to prove to its server who it is."""
        ...

    def proven(self, caller: "Caller") -> None:
        """Learns that the server knows the caller now; may still have it refused."""
        ...

    def cancelled(self, caller: "Caller", request: CancelRequest) -> None:
        """Learns that the caller came to cancel something; ends it, at once or later."""
        ...

    def left(self, caller: "Caller") -> None:
        """Learns that the caller is gone."""
        ...


class Caller(relay.ClientEnd):
    """Is asked who it is, waits for its server, and is then one end of a relay."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self._host = host
        self._received = bytearray()
        self._questions = 0
        self._waits = False
        self._watch = LoginWatch()
        self._server: relay.ServerEnd | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Gives it time to say who it is; see asyncio.Protocol for all of these."""
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_NAMELESS_SECONDS, self.abort)
        self._host.entered(self)

    def data_received(self, data: bytes) -> None:
        """Reads who it is, then passes everything on."""
        if self.other is not None:
            self.other.write(data)
            return
        self._received += data
        try:
            while not self._waits and (packet := first_packet(self._received)) is not None:
                del self._received[: len(packet.raw)]
                self._take(packet)
        except WireError:
            self.abort()

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the other end, if there is one yet."""
        super().connection_lost(error)
        self._stop_timer()
        self._host.left(self)

    def join(self, startup: Startup, server: relay.ServerEnd) -> None:
        """Relays to and from `server` from now on; it learns first what was said here."""
        if self.transport is None or self.transport.is_closing():
            server.end()
            return
        relay.join(self, server)
        self._server, server.listener = server, self._listen
        if self.other is not None:
            self.other.write(startup.raw + bytes(self._received))
        self._received.clear()
        self.transport.resume_reading()

    def refuse(self, answer: bytes) -> None:
        """Says why not, and is done with it."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(answer)
        self.end()

    def _listen(self, said: bytes) -> None:
        """Follows how the server lets it in."""
        heard = self._watch.read(said)
        if heard is Heard.QUESTION:
            self._host.asked(self)
        elif heard is Heard.WELCOME and self._server is not None:
            self._server.listener = None
            self._host.proven(self)

    def _take(self, packet: Packet) -> None:
        match packet:
            case EncryptionRequest():
                self._answer_question()
            case CancelRequest():
                self._wait()
                self._host.cancelled(self, packet)
            case Startup():
                self._wait()
                self._host.named(self, packet)
            case _:
                assert_never(packet)

    def _answer_question(self) -> None:
        self._questions += 1
        if self._questions > _MOST_QUESTIONS:
            raise WireError("asks again and again")
        if self.transport is not None:
            self.transport.write(UNENCRYPTED)

    def _wait(self) -> None:
        """Takes nothing more, until it is known where to."""
        self._waits = True
        self._stop_timer()
        if self.transport is not None:
            self.transport.pause_reading()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
