"""Deployments that borrow connections of their tenants, over the wire."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import error_reason_pb2
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.credentials.settings import Settings
from services.shared.ids import new_deployment_id
from services.shared.postgres import connect
from tests.canaries import STATIC_TOKEN
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.providers import OWN_REDIRECT, allowed


@dataclass(frozen=True, slots=True)
class Borrower:
    """A deployment, as auth knows it, with a key; it is none of the provisioner's."""

    mesh: Mesh
    customer: Customer
    deployment_id: str
    key: str

    @property
    def credentials(self) -> CredentialsServiceStub:
        """credentials, as callers at the edge reach it."""
        return self.mesh.stub(CredentialsServiceStub, "credentials")

    async def static(self, provider: str = "github", **token: Any) -> str:
        """Returns a new connection with a static token, `STATIC_TOKEN` unless it is said."""
        static = pb2.StaticToken(**({"token": STATIC_TOKEN} | token))
        return await self.create(provider=provider, static_token=static)

    async def create(self, **fields: Any) -> str:
        """Returns a new connection of the customer's."""
        request = {"request_id": fresh_id(), "name": "ours"} | fields
        answer = await self.credentials.CreateConnection(
            pb2.CreateConnectionRequest(**request), metadata=bearer(self.customer.key)
        )
        return answer.connection.connection_id

    async def started(self) -> pb2.StartAuthorizationResponse:
        """Returns an authorization at the loopback provider that nobody has allowed yet."""
        return await self.credentials.StartAuthorization(
            pb2.StartAuthorizationRequest(
                request_id=fresh_id(), provider="loopback", name="ours", redirect_url=OWN_REDIRECT
            ),
            metadata=bearer(self.customer.key),
        )

    async def allowed(self) -> str:
        """Returns a connection to the loopback provider that a person has allowed."""
        state, code = await allowed((await self.started()).authorization_url)
        answer = await self.credentials.CompleteAuthorization(
            pb2.CompleteAuthorizationRequest(state=state, code=code),
            metadata=bearer(self.customer.key),
        )
        return answer.connection.connection_id

    async def bind(self, connection_id: str, alias: str = "", **fields: Any) -> str:
        """Returns the binding of a connection to the deployment."""
        request = pb2.BindConnectionRequest(
            deployment_id=self.deployment_id, connection_id=connection_id, alias=alias, **fields
        )
        answer = await self.credentials.BindConnection(request, metadata=bearer(self.customer.key))
        return answer.binding.binding_id

    async def unbind(self, binding_id: str) -> None:
        """Ends a binding."""
        await self.credentials.UnbindConnection(
            pb2.UnbindConnectionRequest(binding_id=binding_id), metadata=bearer(self.customer.key)
        )

    async def connection_key(self, connection_id: str) -> str:
        """Returns a key of one connection."""
        issued = await self.mesh.stub(AuthServiceStub, "auth").IssueKey(
            auth_pb2.IssueKeyRequest(request_id=fresh_id(), connection_id=connection_id),
            metadata=bearer(self.customer.key),
        )
        return issued.key

    async def vend(self, *items: pb2.VendItem, key: str = "") -> Sequence[pb2.VendResult]:
        """Returns what comes of the items."""
        answer = await self.credentials.Vend(
            pb2.VendRequest(items=items), metadata=bearer(key or self.key)
        )
        return answer.results

    async def token(self, alias: str, **fields: Any) -> pb2.VendedToken:
        """Returns what is vended under the alias."""
        (result,) = await self.vend(pb2.VendItem(alias=alias, **fields))
        assert result.HasField("token"), result.refusal
        return result.token

    async def refusal(self, alias: str = "", provider: str = "") -> pb2.VendRefusal:
        """Returns why nothing is vended under this."""
        (result,) = await self.vend(pb2.VendItem(alias=alias, provider=provider))
        assert result.HasField("refusal")
        return result.refusal

    async def reason(self, alias: str = "", provider: str = "") -> str:
        """Returns the reason why nothing is vended under this."""
        return reason(await self.refusal(alias, provider))

    async def execute(self, statement: str, *values: Any) -> None:
        """Does to the tables of credentials what no code of it does."""
        settings = self.mesh.settings["credentials"]
        assert isinstance(settings, Settings)
        connection = await connect(settings)
        try:
            await connection.execute("SET ROLE credentials_service")
            await connection.execute(statement, *values)
        finally:
            await connection.close()

    async def expire(self, connection_id: str) -> None:
        """Lets less than a minute be left of the connection's tokens."""
        await self.execute(
            "UPDATE access_tokens SET expires_at = now() + interval '50 seconds'"
            " WHERE connection_id = $1",
            connection_id,
        )


async def borrower(mesh: Mesh, customer: Customer | None = None) -> Borrower:
    """Returns a new deployment, of a new customer unless one is given."""
    owner, deployment_id = customer or await mesh.customer(), new_deployment_id()
    await mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterDeployment(
        auth_pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(owner.key)
    )
    issued = await mesh.key(owner, deployment_id)
    return Borrower(mesh, owner, deployment_id, issued.key)


def reason(refusal: pb2.VendRefusal) -> str:
    """Returns the reason's name."""
    return error_reason_pb2.ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")
