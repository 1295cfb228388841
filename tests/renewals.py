"""What tests of certificates that change are made of: who is shown which, and calls meanwhile."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK
from services.shared.settings import ServiceSettings
from services.shared.tls import Identity, renewed_server_credentials

PATIENCE_SECONDS = 30.0
LOOK_SECONDS = 0.02
_SERVING = HealthCheckResponse(status=HealthCheckResponse.SERVING).SerializeToString()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something to become so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(LOOK_SECONDS)


async def until_so(condition: Callable[[], Awaitable[bool]]) -> None:
    """Waits for something to become so that takes asking."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(LOOK_SECONDS)


def watching(paths: Paths, **others: Any) -> ServiceSettings:
    """Returns the settings of a service with these files, which looks at them often."""
    return ServiceSettings(
        tls_cert_file=paths.certificate,
        tls_key_file=paths.key,
        tls_ca_file=paths.authority,
        tls_reload_seconds=LOOK_SECONDS,
        **others,
    )


def identity_in(paths: Paths) -> Identity:
    """Returns what is in the files now."""
    return Identity.read(paths.certificate, paths.key, paths.authority)


def serial(pem: bytes) -> int:
    """Returns the number of the first certificate."""
    return x509.load_pem_x509_certificate(pem).serial_number


def serial_in(paths: Paths) -> int:
    """Returns the number of the certificate that is in the file now."""
    return serial(paths.certificate.read_bytes())


async def serial_at(port: int, paths: Paths, protocol: str = "h2") -> int:
    """Returns the number of the certificate that a server shows in a handshake of now."""
    context = ssl.create_default_context(cafile=paths.authority)
    context.load_cert_chain(paths.certificate, paths.key)
    context.set_alpn_protocols([protocol])
    _, writer = await asyncio.open_connection(
        LOOPBACK, port, ssl=context, server_hostname="localhost"
    )
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


class Beholder(grpc.GenericRpcHandler):
    """Answers every call, remembers whose certificates it saw, and streams when it is let."""

    def __init__(self) -> None:
        self.serials: list[int] = []
        self.go_on = asyncio.Event()

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Returns what answers a method."""
        if str(details.method).endswith("/Watch"):
            return grpc.unary_stream_rpc_method_handler(self._watch)
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, _request: bytes, context: Any) -> bytes:
        (pem,) = context.auth_context()["x509_pem_cert"]
        self.serials.append(serial(pem))
        return _SERVING

    async def _watch(self, _request: bytes, _context: Any) -> AsyncIterator[bytes]:
        yield _SERVING
        await self.go_on.wait()
        yield _SERVING


@asynccontextmanager
async def beheld(
    current: Callable[[], Identity], beholder: Beholder, **options: int
) -> AsyncIterator[int]:
    """Yields the port at which the beholder answers, with the certificate of the moment."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0), *options.items()])
    server.add_generic_rpc_handlers((beholder,))
    port = server.add_secure_port(f"{LOOPBACK}:0", renewed_server_credentials(current))
    await server.start()
    try:
        yield port
    finally:
        beholder.go_on.set()
        await server.stop(0)


class Calls:
    """How many calls were answered so far; one that fails ends the test."""

    def __init__(self) -> None:
        self.answered = 0

    async def more(self, count: int = 20) -> None:
        """Waits until as many more are answered."""
        enough = self.answered + count
        await until(lambda: self.answered >= enough)


@asynccontextmanager
async def constant(call: Callable[[], Any], callers: int = 3) -> AsyncIterator[Calls]:
    """Calls all the time, several at once; each call must be answered."""
    calls = Calls()

    async def call_on() -> None:
        while True:
            await call()
            calls.answered += 1
            # Leaves the processor to those who answer.
            await asyncio.sleep(0.002)

    async with asyncio.TaskGroup() as group:
        running = [group.create_task(call_on()) for _ in range(callers)]
        await calls.more()
        yield calls
        for task in running:
            task.cancel()


def checking(channel: grpc.aio.Channel) -> Callable[[], Any]:
    """Returns a call over the channel, by a stub that is made once."""
    stub: Any = HealthStub(channel)
    return lambda: stub.Check(HealthCheckRequest())


def replaced(files: Paths, by: Paths) -> None:
    """Swaps the files for others as kubelet does: all at once, by a link to their folder."""
    link = files.certificate.parent
    fresh = link.with_name("upcoming")
    fresh.symlink_to(by.certificate.parent)
    Path(fresh).replace(link)
