"""Serving HTTP inside the service's own event loop, to the front door alone."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from services.app_proxy.web_tls import RenewedTls
from services.shared.background import background
from services.shared.identity import WatchedIdentity
from services.shared.settings import ServiceSettings
from services.shared.tls import spiffe_id

# The only service that may connect.
PEER = "edge"
_MOST_HEADER_BYTES = 64 * 1024
# Longer than Envoy keeps an idle connection, so that it is never us who close one under a request.
_KEEP_ALIVE_SECONDS = 30


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # The process's signals are the runtime's: it drains all servers in order.
        yield


@asynccontextmanager
async def serving_web(
    app: ASGIApp, settings: ServiceSettings, listen: str, identity: WatchedIdentity
) -> AsyncIterator[int]:
    """Yields the port at which `app` is served over mTLS, to the front door's certificate alone.

    At the end no request is taken any more, and those in flight are awaited for the grace period.

    Raises:
        OSError: the address is taken.
        UnusableFileError: the certificate cannot be used.
    """
    tls = RenewedTls(settings, identity)
    listener = _bound(listen)
    server = _Server(_config(app, settings, tls.context))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving
        port: int = listener.getsockname()[1]
        structlog.get_logger().info("serving http", port=port)
        async with background(tls.follow()):
            yield port
    finally:
        ready.cancel()
        server.should_exit = True
        await serving


def _config(app: ASGIApp, settings: ServiceSettings, tls: ssl.SSLContext) -> uvicorn.Config:
    edge = spiffe_id(settings.trust_domain, PEER)
    return uvicorn.Config(
        app,
        http=_protocol_for(edge),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, round(settings.grace_seconds)),
        h11_max_incomplete_event_size=_MOST_HEADER_BYTES,
        ssl_context_factory=lambda _config, _default: tls,
    )


def _protocol_for(peer: str) -> type[H11Protocol]:
    """Returns a protocol that ends a connection whose certificate does not name `peer`."""

    class PeerProtocol(H11Protocol):
        _refused = False

        def connection_made(self, transport: Any) -> None:
            if _names(transport.get_extra_info("peercert"), peer):
                super().connection_made(transport)
                return
            self._refused = True
            structlog.get_logger().warning("http peer refused")
            transport.abort()

        def data_received(self, data: bytes) -> None:
            if not self._refused:
                super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            if not self._refused:
                super().connection_lost(exc)

    return PeerProtocol


def _names(certificate: dict[str, Any] | None, peer: str) -> bool:
    names = (certificate or {}).get("subjectAltName", ())
    return ("URI", peer) in names


def _bound(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener
