"""A service's gRPC server: mTLS, declared access, health, reflection and a drain that waits."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import grpc
import structlog
from bulkhead.common.v1 import access_pb2
from bulkhead.common.v1.access_pb2 import Access
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from services.shared.access import Auditor, Authenticator
from services.shared.background import background
from services.shared.health import Check, Health
from services.shared.identity import WatchedIdentity, open_identity
from services.shared.interceptors.access import AccessControl
from services.shared.interceptors.chain import Chain
from services.shared.interceptors.deadline import deadline
from services.shared.interceptors.errors import errors
from services.shared.interceptors.load import LoadLimit
from services.shared.interceptors.telemetry import Telemetry
from services.shared.recording import Recording
from services.shared.settings import ServiceSettings
from services.shared.tls import renewed_server_credentials

# No request of ours is near it; whoever sends more is cut off before it is in memory.
_MAX_MESSAGE_BYTES = 128 * 1024
_OPTIONS = [
    # A second server must fail to bind, not silently take half of the calls.
    ("grpc.so_reuseport", 0),
    # Clients resolve names anew when a connection ends; without this they never see new replicas.
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
]


@dataclass(frozen=True, slots=True)
class Registration:
    """One gRPC service that a server offers."""

    descriptor: ServiceDescriptor
    servicer: Any
    add_to_server: Callable[[Any, grpc.aio.Server], None]


@dataclass(frozen=True, slots=True)
class Service:
    """What a composition root hands over to be served."""

    registrations: Sequence[Registration]
    authenticator: Authenticator
    auditor: Auditor
    # Each returns when what it names answers, and raises otherwise.
    checks: Mapping[str, Check]
    # Access for services whose contract is a standard and cannot carry our option, by full name.
    standard_access: Mapping[str, Access] = field(default_factory=dict)
    # What the channels of the service present, too; None: the server watches one of its own.
    identity: WatchedIdentity | None = None
    # Set when the end begins, for what is served beside gRPC.
    draining: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Address:
    """Where a started server listens."""

    port: int
    health_port: int


class UndeclaredAccessError(RuntimeError):
    """A method declares no access, so nobody knows who may call it."""


def declared_access(service: Service) -> dict[str, Access]:
    """Returns the access of every method, by `package.Service/Method`.

    Raises:
        UndeclaredAccessError: a method declares none, or one that contradicts itself.
    """
    access = {}
    for registration in service.registrations:
        standard = service.standard_access.get(registration.descriptor.full_name)
        for method in registration.descriptor.methods:
            name = f"{registration.descriptor.full_name}/{method.name}"
            access[name] = standard or _declared(name, method)
    return access


def _declared(name: str, method: MethodDescriptor) -> Access:
    options = method.GetOptions()
    if not options.HasExtension(access_pb2.access):
        raise UndeclaredAccessError(f"{name} declares no access")
    access = options.Extensions[access_pb2.access]
    if access.keyless == bool(access.keys) or (access.keyless and not access.peers):
        raise UndeclaredAccessError(f"{name}: declare keys, or keyless with peers")
    return access


@asynccontextmanager
async def serving(service: Service, settings: ServiceSettings) -> AsyncIterator[Address]:
    """Serves until the block is left, then drains.

    Draining: say NOT_SERVING, wait a moment for balancers, stop accepting, end the streams, await
    what is in flight (at most the grace period), then return so that stores can be closed.
    """
    names = [registration.descriptor.full_name for registration in service.registrations]
    recording = Recording.of(settings)
    health = Health(names, service.checks)
    chain = Chain(
        declared_access(service),
        [
            Telemetry(recording),
            errors,
            LoadLimit(settings.max_in_flight, recording),
            deadline,
            AccessControl(service.authenticator, service.auditor, settings.trust_domain),
        ],
    )
    server = _server(service, health, chain)
    probe = grpc.aio.server(options=_OPTIONS)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, probe)
    try:
        async with _identity(service, settings) as identity, _watched(health):
            credentials = renewed_server_credentials(lambda: identity.current)
            address = Address(
                server.add_secure_port(settings.listen, credentials),
                probe.add_insecure_port(settings.health_listen),
            )
            await server.start()
            await probe.start()
            structlog.get_logger().info("serving", **asdict(address))
            try:
                yield address
            finally:
                service.draining.set()
                await health.drain()
                await asyncio.sleep(settings.drain_seconds)
                chain.end_streams()
                await server.stop(settings.grace_seconds)
                await chain.idle()
                structlog.get_logger().info("drained")
    finally:
        await server.stop(None)
        await probe.stop(None)


@asynccontextmanager
async def _identity(service: Service, settings: ServiceSettings) -> AsyncIterator[WatchedIdentity]:
    if service.identity is not None:
        yield service.identity
        return
    async with open_identity(settings) as identity:
        yield identity


@asynccontextmanager
async def _watched(health: Health) -> AsyncIterator[None]:
    await health.check()
    async with background(health.watch()):
        yield


def _server(service: Service, health: Health, chain: Chain) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=[chain], options=_OPTIONS)
    for registration in service.registrations:
        registration.add_to_server(registration.servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health.servicer, server)
    shown = [registration.descriptor.full_name for registration in service.registrations]
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection([*shown, health_name, reflection.SERVICE_NAME], server)
    return server
