"""Small real servers with the mesh's certificates, to stand behind a front door under test."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from bulkhead.envoy.auth.v3 import authorization_pb2, authorization_pb2_grpc
from google.rpc import code_pb2

from deploy.envoy.settings import Address, EdgeSettings, Identity
from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK, free_ports

SERVICES = ("auth", "ratelimit", "credentials", "provisioner", "app_proxy")


@dataclass
class Recorded:
    """What the servers behind the door were told."""

    calls: list[str] = field(default_factory=list)
    checks: list[Mapping[str, str]] = field(default_factory=list)
    check_metadata: list[Mapping[str, str]] = field(default_factory=list)
    requests: list[Mapping[str, str]] = field(default_factory=list)
    metadata: list[Mapping[str, str]] = field(default_factory=list)
    next_event: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True)
class Door:
    url: str
    target: str
    recorded: Recorded
    settings: EdgeSettings

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.url, timeout=10)


class RecordingService(grpc.GenericRpcHandler):
    """Answers every method with an empty message."""

    def __init__(self, service: str, recorded: Recorded) -> None:
        self._service = service
        self._recorded = recorded

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        async def answer(_request: bytes, _context: object) -> bytes:
            self._recorded.calls.append(f"{self._service}{details.method}")
            self._recorded.metadata.append(_text(details.invocation_metadata))
            return b""

        if details.method == "/envoy.service.auth.v3.Authorization/Check":
            return None
        return grpc.unary_unary_rpc_method_handler(answer)


class DoorKeeper(authorization_pb2_grpc.AuthorizationServicer):
    """Lets one key in, and tells the upstream so."""

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    async def Check(  # noqa: N802 the contract's name
        self, request: authorization_pb2.CheckRequest, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> authorization_pb2.CheckResponse:
        headers = dict(request.attributes.request.http.headers)
        self._recorded.checks.append(headers)
        self._recorded.check_metadata.append(_text(context.invocation_metadata()))
        if headers.get("authorization") != "Bearer good":
            return _denied()
        header = authorization_pb2.HeaderValue(key="x-bulkhead-deployment", value="dep_true")
        return authorization_pb2.CheckResponse(
            status=authorization_pb2.Status(code=code_pb2.OK),
            ok_response=authorization_pb2.OkHttpResponse(
                headers=[authorization_pb2.HeaderValueOption(header=header)]
            ),
        )


def _denied() -> authorization_pb2.CheckResponse:
    challenge = authorization_pb2.HeaderValue(key="www-authenticate", value="Bearer")
    return authorization_pb2.CheckResponse(
        status=authorization_pb2.Status(code=code_pb2.UNAUTHENTICATED),
        denied_response=authorization_pb2.DeniedHttpResponse(
            status=authorization_pb2.HttpStatus(code=401),
            headers=[authorization_pb2.HeaderValueOption(header=challenge)],
            body="as app_proxy worded it",
        ),
    )


def _text(metadata: object) -> Mapping[str, str]:
    return {str(key): str(value) for key, value in metadata}  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def grpc_server(
    paths: Paths, port: int, handler: grpc.GenericRpcHandler, keeper: DoorKeeper | None = None
) -> AsyncIterator[None]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((handler,))
    if keeper:
        authorization_pb2_grpc.add_AuthorizationServicer_to_server(keeper, server)
    pair = (paths.key.read_bytes(), paths.certificate.read_bytes())
    credentials = grpc.ssl_server_credentials(
        [pair], root_certificates=paths.authority.read_bytes(), require_client_auth=True
    )
    server.add_secure_port(f"{LOOPBACK}:{port}", credentials)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@contextlib.asynccontextmanager
async def http_server(paths: Paths, port: int, recorded: Recorded) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
            await reader.readexactly(int(headers.get("content-length", "0")))
            recorded.requests.append(headers)
            path = head.split(" ", 2)[1]
            if path == "/events":
                await _events(writer, recorded.next_event)
                return
            body = f"saw {path}".encode()
            writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\n")
            writer.write(b"content-length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=paths.authority)
    context.load_cert_chain(paths.certificate, paths.key)
    context.verify_mode = ssl.CERT_REQUIRED
    server = await asyncio.start_server(serve, LOOPBACK, port, ssl=context)
    try:
        yield
    finally:
        server.close()


async def _events(writer: asyncio.StreamWriter, go_on: asyncio.Event) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
    writer.write(b"data: one\n\n")
    await writer.drain()
    await go_on.wait()
    writer.write(b"data: two\n\n")
    await writer.drain()


def settings_of(pki: Mapping[str, Paths], home: Path) -> EdgeSettings:
    ports = iter(free_ports(len(SERVICES) + 3))
    edge = pki["edge"]
    return EdgeSettings(
        listen=Address(LOOPBACK, next(ports)),
        admin=Address(LOOPBACK, next(ports)),
        app_proxy_http=Address(LOOPBACK, next(ports)),
        services={service: Address(LOOPBACK, next(ports)) for service in SERVICES},
        identity=Identity(edge.certificate, edge.key, edge.authority),
        access_log=home / "access.log",
    )


def door_of(settings: EdgeSettings, recorded: Recorded) -> Door:
    target = f"{LOOPBACK}:{settings.listen.port}"
    return Door(f"http://{target}", target, recorded, settings)
