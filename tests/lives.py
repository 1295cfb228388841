"""Tenants and their deployments, in a mesh whose provisioner dies again and again."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import grpc
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from deploy.local.ports import free_ports
from deploy.local.postgres import MeshPostgres
from deploy.local.valkey import ValkeyServer
from services.provisioner.domain import OperationKind
from services.provisioner.settings import Settings
from tests.apps import App
from tests.certificates import verified
from tests.conftest import StartMesh
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id
from tests.provisioner_kills import (
    PAUSE_SECONDS,
    Kills,
    boundaries_of,
    insisted,
    kills_in,
    provisioner,
    until,
)
from tests.s3 import Storage
from tests.scan import Scan, scan_of
from tests.scan_rows import Names


@dataclass(frozen=True)
class Place:
    """A mesh whose provisioner dies, and what sees whatever it leaves."""

    mesh: Mesh
    kills: Kills
    scan: Scan
    port: int

    @property
    def stub(self) -> ProvisionerServiceStub:
        return self.mesh.stub(ProvisionerServiceStub, "provisioner")


@dataclass
class Life:
    """A tenant with one deployment, from its beginning to its end."""

    place: Place
    customer: Customer
    app: App
    # Written as content wherever content can be written.
    word: str = field(default_factory=lambda: f"word-{secrets.token_hex(12)}")
    others: list[pb2.Deployment] = field(default_factory=list)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.customer.key)

    async def operation(self, operation_id: str) -> pb2.Operation:
        answer = await self.place.stub.GetOperation(
            pb2.GetOperationRequest(operation_id=operation_id), metadata=self.metadata
        )
        return answer.operation

    async def done(self, operation: pb2.Operation) -> None:
        """Returns when it has succeeded."""

        async def ended() -> bool:
            nonlocal operation
            operation = await self.operation(operation.operation_id)
            return operation.state != pb2.OPERATION_STATE_RUNNING

        await until(ended)
        assert operation.state == pb2.OPERATION_STATE_SUCCEEDED, operation

    async def state(self) -> tuple[str, dict[str, str]]:
        got = await insisted(self.app.get)
        resources = await insisted(self.app.resources)
        return pb2.DeploymentState.Name(got.state).removeprefix("DEPLOYMENT_STATE_"), resources

    async def write(self) -> None:
        """Writes the word into the database."""
        async with self.app.writer() as writer:
            await writer.execute("CREATE TABLE kept (word text)")
            await writer.execute("INSERT INTO kept VALUES ($1)", self.word)

    async def words(self, deployment_id: str) -> list[str]:
        """Returns what is kept in a deployment's database."""
        async with replace(self.app, deployment_id=deployment_id).writer() as writer:
            return [row["word"] for row in await writer.fetch("SELECT word FROM kept")]

    async def names(self) -> Names:
        """Returns all that nothing may be left of when the tenant is gone."""
        answer = await self.place.stub.ListDeployments(
            pb2.ListDeploymentsRequest(), metadata=self.metadata
        )
        made = [*answer.deployments, *self.others]
        return Names(
            self.customer.tenant_id,
            deployments=frozenset(each.deployment_id for each in made),
            hosts=frozenset(each.host for each in made),
            keys=frozenset({self.customer.key_id}),
            words=frozenset({self.word}),
        )

    async def end(self) -> None:
        """Deletes the tenant; nothing is left."""
        names = await self.names()
        token = secrets.token_hex(32)
        await self.delete_tenant(token)
        await self.certified(token, names)

    async def delete_tenant(self, token: str) -> None:
        """Returns when the deletion has begun; then its key opens nothing any more."""
        request = pb2.DeleteTenantRequest(certificate_token=token)
        try:
            await insisted(lambda: self.place.stub.DeleteTenant(request, metadata=self.metadata))
        except grpc.aio.AioRpcError as error:
            # The first answer was lost with whoever would have given it, and the key is dead.
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise

    async def certified(self, token: str, names: Names) -> None:
        """Returns when the certificate is there, names every deployment, and nothing is left."""
        document = await verified(self.place.stub, await certificate(self.place, token))
        assert document["sub"] == names.tenant
        named = {one["deployment_id"] for one in document["resources"]}
        assert named >= names.deployments - {each.deployment_id for each in self.others}
        assert await self.place.scan.settled(names) == []
        assert self.place.kills.shared() == []


async def certificate(place: Place, token: str) -> str:
    request = pb2.GetDeletionCertificateRequest(certificate_token=token)
    found = ""

    async def issued() -> bool:
        nonlocal found
        found = (await place.stub.GetDeletionCertificate(request)).certificate
        return bool(found)

    await until(issued)
    return found


def wanted(*, everything: bool = False) -> pb2.CreateDeploymentRequest:
    return pb2.CreateDeploymentRequest(
        request_id=fresh_id(),
        name="mortal",
        mcp=True,
        database=True,
        bucket=everything,
        bootstrap_admin=everything,
    )


async def begin(place: Place, *, everything: bool = False) -> tuple[Life, pb2.Operation]:
    """Returns a new tenant, whose first deployment is being made."""
    customer = await place.mesh.customer()
    request = wanted(everything=everything)
    created = await insisted(
        lambda: place.stub.CreateDeployment(request, metadata=bearer(customer.key))
    )
    made = created.deployment
    app = App(place.mesh, customer, made.deployment_id, made.host)
    return Life(place, customer, app), created.operation


async def a_life(place: Place, *, everything: bool = False) -> Life:
    """Returns a new tenant whose first deployment is ready, and holds the word."""
    life, operation = await begin(place, everything=everything)
    await life.done(operation)
    await life.write()
    return life


async def died_everywhere(kills: Kills, kind: OperationKind) -> None:
    """Returns when a process has died at the last boundary too: the operation may end before."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while len(kills.died()) < len(boundaries_of(kind)):
            await asyncio.sleep(PAUSE_SECONDS)
    assert kills.died() == boundaries_of(kind)


@asynccontextmanager
async def running_place(
    start_mesh: StartMesh, s3: Storage, postgres: MeshPostgres, valkey: ValkeyServer
) -> AsyncIterator[Place]:
    """Yields a mesh of its own, whose provisioner is a process of its own."""
    (port,) = free_ports(1)
    own = {
        "provisioner": {**(await s3.settings()), "sweep_seconds": 0.5, "heartbeat_seconds": 1.0},
        "app_proxy": {"http_listen": f"127.0.0.1:{port}"},
    }
    async with start_mesh(own) as mesh:
        await mesh.stop("provisioner")
        settings = mesh.settings["provisioner"]
        assert isinstance(settings, Settings)
        kills = kills_in(mesh.home / "kills")
        scan = await scan_of(mesh, postgres, valkey, s3)
        async with provisioner(settings, kills):
            yield Place(mesh, kills, scan, port)
