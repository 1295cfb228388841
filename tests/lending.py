"""What tests make of connections and bindings, over the wire and below it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.credentials.settings import Settings
from services.shared.ids import new_deployment_id
from services.shared.postgres import Connection, connect
from tests.canaries import STATIC_TOKEN
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.providers import LOOPBACK, OWN_REDIRECT, allowed


@dataclass(frozen=True, slots=True)
class Lender:
    """A customer who has connections and lends them."""

    mesh: Mesh
    customer: Customer

    @property
    def credentials(self) -> CredentialsServiceStub:
        """credentials, as anyone calls it."""
        return self.mesh.stub(CredentialsServiceStub, "credentials")

    async def connection(self, **fields: Any) -> str:
        """Returns a new connection, with a static token unless `fields` say otherwise."""
        request: dict[str, Any] = {
            "request_id": fresh_id(),
            "provider": LOOPBACK,
            "name": "Bot",
        } | fields
        if not {"api_key", "client_credentials"} & set(request):
            request.setdefault("static_token", pb2.StaticToken(token=STATIC_TOKEN))
        answer = await self.credentials.CreateConnection(
            pb2.CreateConnectionRequest(**request), metadata=bearer(self.customer.key)
        )
        return str(answer.connection.connection_id)

    async def authorized(self, **fields: Any) -> str:
        """Returns a new connection that a person has allowed."""
        started = await self.started(**fields)
        state, code = await allowed(started.authorization_url)
        await self.credentials.CompleteAuthorization(
            pb2.CompleteAuthorizationRequest(state=state, code=code),
            metadata=bearer(self.customer.key),
        )
        return str(started.connection.connection_id)

    async def started(self, **fields: Any) -> pb2.StartAuthorizationResponse:
        """Begins an authorization that the customer is to complete."""
        request: dict[str, Any] = {
            "request_id": fresh_id(),
            "provider": LOOPBACK,
            "name": "Mia",
            "redirect_url": OWN_REDIRECT,
        } | fields
        return await self.credentials.StartAuthorization(
            pb2.StartAuthorizationRequest(**request), metadata=bearer(self.customer.key)
        )

    async def deployment(self) -> str:
        """Returns a deployment as auth knows it; nothing runs for it."""
        deployment_id = new_deployment_id()
        await self.mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterDeployment(
            auth_pb2.RegisterDeploymentRequest(deployment_id=deployment_id),
            metadata=bearer(self.customer.key),
        )
        return deployment_id

    async def bind(self, deployment_id: str, connection_id: str, **fields: Any) -> pb2.Binding:
        """Lends the connection to the deployment."""
        request = pb2.BindConnectionRequest(
            deployment_id=deployment_id, connection_id=connection_id, **fields
        )
        answer = await self.credentials.BindConnection(request, metadata=bearer(self.customer.key))
        return answer.binding

    async def connection_key(self, connection_id: str) -> auth_pb2.IssueKeyResponse:
        """Returns a new key of the connection."""
        return await self.mesh.stub(AuthServiceStub, "auth").IssueKey(
            auth_pb2.IssueKeyRequest(request_id=fresh_id(), connection_id=connection_id),
            metadata=bearer(self.customer.key),
        )


@asynccontextmanager
async def below(mesh: Mesh, role: str = "credentials_service") -> AsyncIterator[Connection]:
    """Yields the database of credentials as `role` sees it; '' is the owner of the tables."""
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    connection = await connect(settings)
    try:
        if role:
            await connection.execute(f"SET ROLE {role}")
        yield connection
    finally:
        await connection.close()
