"""A deployment of a tenant of its own, and what tests do with it, over the wire and below it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from bulkhead.envoy.auth.v3 import authorization_pb2 as auth_pb
from bulkhead.envoy.auth.v3.authorization_pb2_grpc import AuthorizationStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.provisioner.queue import WorkQueue
from services.provisioner.settings import Settings
from services.shared.ids import DeploymentId
from services.shared.postgres import Connection, connect
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer


@dataclass(frozen=True, slots=True)
class App:
    """A deployment that was ready once."""

    mesh: Mesh
    customer: Customer
    deployment_id: str
    host: str

    @property
    def provisioner(self) -> ProvisionerServiceStub:
        """The provisioner, as anyone calls it."""
        return self.mesh.stub(ProvisionerServiceStub, "provisioner")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Presents the tenant's key."""
        return bearer(self.customer.key)

    async def get(self) -> pb2.Deployment:
        """Returns the deployment as it is."""
        got = await self.provisioner.GetDeployment(
            pb2.GetDeploymentRequest(deployment_id=self.deployment_id), metadata=self.metadata
        )
        return got.deployment

    async def resources(self) -> dict[str, str]:
        """Returns the state of each resource."""
        return {
            pb2.ResourceKind.Name(each.kind).removeprefix("RESOURCE_KIND_"): (
                pb2.ResourceState.Name(each.state).removeprefix("RESOURCE_STATE_")
            )
            for each in (await self.get()).resources
        }

    async def suspend(self) -> pb2.Operation:
        """Returns the operation that suspends it."""
        answer = await self.provisioner.SuspendDeployment(
            pb2.SuspendDeploymentRequest(deployment_id=self.deployment_id),
            metadata=self.metadata,
            timeout=PATIENCE_SECONDS,
        )
        return answer.operation

    async def resume(self) -> pb2.Operation:
        """Returns the operation that resumes it."""
        answer = await self.provisioner.ResumeDeployment(
            pb2.ResumeDeploymentRequest(deployment_id=self.deployment_id),
            metadata=self.metadata,
            timeout=PATIENCE_SECONDS,
        )
        return answer.operation

    async def delete(self) -> pb2.Operation:
        """Returns the operation that deletes it."""
        answer = await self.provisioner.DeleteDeployment(
            pb2.DeleteDeploymentRequest(deployment_id=self.deployment_id),
            metadata=self.metadata,
            timeout=PATIENCE_SECONDS,
        )
        return answer.operation

    async def done(self, operation: pb2.Operation) -> pb2.Operation:
        """Returns the operation when it has succeeded."""
        latest = await self.mesh.finished(self.customer, operation.operation_id)
        assert latest.state == pb2.OPERATION_STATE_SUCCEEDED, latest
        return latest

    async def way_in(self) -> pb2.GetDatabaseConnectionResponse:
        """Returns how the deployment's database is reached as its writer."""
        return await self.provisioner.GetDatabaseConnection(
            pb2.GetDatabaseConnectionRequest(
                deployment_id=self.deployment_id, role=pb2.DATABASE_ROLE_WRITER
            ),
            metadata=self.metadata,
            timeout=PATIENCE_SECONDS,
        )

    @asynccontextmanager
    async def writer(self) -> AsyncIterator[Connection]:
        """Yields a session of the database's writer."""
        connection = await asyncpg.connect((await self.way_in()).uri, timeout=PATIENCE_SECONDS)
        try:
            yield connection
        finally:
            connection.terminate()

    async def at_the_door(self) -> int:
        """Returns the status with which the front door refuses a request without a key."""
        http = auth_pb.AttributeContext.HttpRequest(host=self.host, path="/mcp")
        request = auth_pb.AttributeContext.Request(http=http)
        answer = await self.mesh.stub(AuthorizationStub, "app_proxy").Check(
            auth_pb.CheckRequest(attributes=auth_pb.AttributeContext(request=request))
        )
        return int(answer.denied_response.status.code)

    async def rewrite(self, statement: str) -> None:
        """Changes the deployment's rows by hand, by its id as `$1`, and lets them be looked at."""
        settings = self.mesh.settings["provisioner"]
        assert isinstance(settings, Settings)
        connection = await connect(settings)
        try:
            async with connection.transaction():
                await connection.execute("SET LOCAL ROLE provisioner_service")
                await connection.execute(statement, self.deployment_id)
                queue = WorkQueue("provisioner_service")
                await queue.enqueue(connection, DeploymentId(self.deployment_id))
        finally:
            await connection.close()


async def an_app(mesh: Mesh, *, database: bool = True) -> App:
    """Returns a new deployment, ready, of a new tenant."""
    customer = await mesh.customer()
    made = await mesh.deployment(customer, database=database, mcp=database)
    return App(mesh, customer, made.deployment_id, made.host)
