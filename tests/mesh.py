"""A whole mesh inside the test process: the services' own composition, over real mTLS."""

import secrets
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import grpc
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from deploy.local.files import write_private
from deploy.local.pki import Paths
from deploy.local.ports import free_ports
from deploy.local.valkey import ValkeyServer
from services.provisioner.drivers.local import remove_home
from services.provisioner.drivers.postgres_process import reachable_home
from services.shared.keyformat import new_key
from services.shared.principal import KeyKind
from services.shared.server import serving
from services.shared.settings import ServiceSettings
from services.shared.tls import Identity, channel_credentials
from tests.databases import Databases

ALL = ("auth", "ratelimit", "credentials", "provisioner", "app_proxy")
_WITH_DATABASE = ALL
_WITH_VALKEY = ("ratelimit", "app_proxy")
# Creating a deployment starts a server: a loaded machine takes its time.
PATIENCE_SECONDS = 30.0

Stub = TypeVar("Stub")


@dataclass(frozen=True, slots=True)
class Customer:
    """A tenant and its first key."""

    tenant_id: str
    key: str
    key_id: str


@dataclass(frozen=True, slots=True)
class Mesh:
    """The running services and how to call them as anyone."""

    home: Path
    pki: Mapping[str, Paths]
    ports: Mapping[str, int]
    settings: Mapping[str, ServiceSettings]
    operator_key: str
    running: dict[str, AsyncExitStack] = field(default_factory=dict)
    _channels: dict[tuple[str, str], grpc.aio.Channel] = field(default_factory=dict)

    def stub(self, stub: "type[Stub]", service: str, peer: str = "edge") -> Stub:
        """Returns a stub that calls `service` with the certificate of `peer`."""
        return stub(self.channel(service, peer))  # type: ignore[call-arg]

    def channel(self, service: str, peer: str = "edge") -> grpc.aio.Channel:
        """Returns a plain channel, without any interceptor of ours."""
        if (service, peer) not in self._channels:
            files = self.pki[peer]
            identity = Identity.read(files.certificate, files.key, files.authority)
            self._channels[service, peer] = grpc.aio.secure_channel(
                f"127.0.0.1:{self.ports[service]}",
                channel_credentials(identity),
                options=[
                    ("grpc.ssl_target_name_override", service),
                    ("grpc.enable_retries", 0),
                    ("grpc.use_local_subchannel_pool", 1),
                    ("grpc.initial_reconnect_backoff_ms", 50),
                    ("grpc.max_reconnect_backoff_ms", 200),
                ],
            )
        return self._channels[service, peer]

    async def start(self, service: str) -> None:
        """Starts one service."""
        compose = import_module(f"services.{service}.server").compose
        own = AsyncExitStack()
        composed = await own.enter_async_context(compose(self.settings[service]))
        await own.enter_async_context(serving(composed, self.settings[service]))
        self.running[service] = own

    async def stop(self, service: str) -> None:
        """Drains one service and closes its stores."""
        await self.running.pop(service).aclose()

    async def customer(self, plan: "auth_pb2.Plan.ValueType" = auth_pb2.PLAN_PRO) -> Customer:
        """Returns a new tenant."""
        created = await self.stub(AuthServiceStub, "auth").CreateTenant(
            auth_pb2.CreateTenantRequest(request_id=fresh_id(), name="Acme", plan=plan),
            metadata=bearer(self.operator_key),
        )
        return Customer(created.tenant_id, created.key, created.key_id)

    async def deployment(
        self,
        customer: Customer,
        *,
        database: bool = True,
        mcp: bool = True,
        bucket: bool = False,
        bootstrap_admin: bool = False,
        name: str = "notes",
    ) -> provisioner_pb2.Deployment:
        """Returns a new deployment of the customer, once it is ready."""
        stub = self.stub(ProvisionerServiceStub, "provisioner")
        created = await stub.CreateDeployment(
            provisioner_pb2.CreateDeploymentRequest(
                request_id=fresh_id(),
                name=name,
                mcp=mcp,
                database=database,
                bucket=bucket,
                bootstrap_admin=bootstrap_admin,
            ),
            metadata=bearer(customer.key),
        )
        operation = await self.finished(customer, created.operation.operation_id)
        assert operation.state == provisioner_pb2.OPERATION_STATE_SUCCEEDED, operation
        return created.deployment

    async def finished(self, customer: Customer, operation_id: str) -> provisioner_pb2.Operation:
        """Returns the operation once it is done."""
        latest = provisioner_pb2.Operation()
        async for change in self.stub(ProvisionerServiceStub, "provisioner").WaitOperation(
            provisioner_pb2.WaitOperationRequest(operation_id=operation_id),
            metadata=bearer(customer.key),
            timeout=PATIENCE_SECONDS,
        ):
            latest = change.operation
        return latest

    async def key(
        self, customer: Customer, deployment_id: str = "", scopes: tuple[str, ...] = ()
    ) -> auth_pb2.IssueKeyResponse:
        """Returns a new key of the customer, or of one of its deployments."""
        return await self.stub(AuthServiceStub, "auth").IssueKey(
            auth_pb2.IssueKeyRequest(
                request_id=fresh_id(), deployment_id=deployment_id, scopes=scopes
            ),
            metadata=bearer(customer.key),
        )

    async def job_key(
        self, customer: Customer, scopes: tuple[str, ...] = ("deployments:write", "tenants:write")
    ) -> str:
        """Returns a new key with which a job of the provisioner acts for the customer."""
        job = await self.stub(AuthServiceStub, "auth", "provisioner").Delegate(
            auth_pb2.DelegateRequest(purpose="a test", scopes=scopes),
            metadata=bearer(customer.key),
        )
        return str(job.key)


def fresh_id() -> str:
    """Returns an id for a request."""
    return uuid.uuid4().hex


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    """Returns the metadata that presents `key`."""
    return (("authorization", f"Bearer {key}"),)


@asynccontextmanager
async def running_mesh(
    home: Path,
    databases: Databases,
    valkey: ValkeyServer,
    pki: Mapping[str, Paths],
    overrides: Mapping[str, Mapping[str, Any]],
    names: Sequence[str] = ALL,
) -> AsyncIterator[Mesh]:
    """Yields a mesh with fresh databases; `overrides` are settings by service."""
    own_home = home / f"mesh-{secrets.token_hex(4)}"
    own_home.mkdir()
    operator_key = new_key(KeyKind.OPERATOR)
    ports = dict(zip(ALL, free_ports(len(ALL)), strict=True))
    common = _common(own_home, operator_key, ports)
    settings = {}
    for service in names:
        settings_type = import_module(f"services.{service}.settings").Settings
        values = dict(common) | _identity(pki[service], ports[service])
        if service in _WITH_DATABASE:
            values |= (await databases.fresh(service)).model_dump()
        if service in _WITH_VALKEY:
            values |= _valkey(valkey, service)
        if service == "app_proxy":
            values["http_listen"] = f"127.0.0.1:{free_ports(1)[0]}"
        # Each service that encrypts has keys of its own: one destroys what it has no use for.
        values["keyring_file"] = own_home / f"{service}-keyring"
        settings[service] = settings_type(**(values | dict(overrides.get(service, {}))))
    mesh = Mesh(own_home, pki, ports, settings, operator_key)
    try:
        for service in names:
            await mesh.start(service)
        yield mesh
    finally:
        for channel in mesh._channels.values():  # noqa: SLF001 its own module
            await channel.close()
        for service in reversed(list(mesh.running)):
            await mesh.stop(service)
        await remove_home(reachable_home(own_home))


def _common(home: Path, operator_key: str, ports: Mapping[str, int]) -> dict[str, Any]:
    targets = {f"{service}_target": f"127.0.0.1:{port}" for service, port in ports.items()}
    return targets | {
        "drain_seconds": 0.0,
        "grace_seconds": 2.0,
        "pepper_file": write_private(home / "pepper", secrets.token_hex(32)),
        "bootstrap_operator_key_file": write_private(home / "operator.key", operator_key),
        "certificate_key_file": home / "certificate-key.pem",
        "database_secret_file": write_private(home / "database.secret", secrets.token_hex(32)),
        # Providers and receivers of webhooks are on loopback here.
        "allow_private_targets": True,
        "webhook_retry_seconds": 0.1,
        "webhook_poll_seconds": 0.1,
        "servers_home": home,
        "backups_home": home / "backups",
    }


def _identity(paths: Paths, port: int) -> dict[str, Any]:
    return {
        "listen": f"127.0.0.1:{port}",
        "tls_cert_file": paths.certificate,
        "tls_key_file": paths.key,
        "tls_ca_file": paths.authority,
    }


def _valkey(server: ValkeyServer, service: str) -> dict[str, Any]:
    return {
        "valkey_host": server.host,
        "valkey_port": server.port,
        "valkey_user": service,
        "valkey_password_file": server.password_files[service],
    }
