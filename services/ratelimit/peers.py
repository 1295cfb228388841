"""What ratelimit asks of other services."""

import grpc
from bulkhead.auth.v1 import auth_service_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.ids import DeploymentId, TenantId
from services.shared.status import translated


class AuthDeployments:
    """auth, as the one that knows whose deployments are whose."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AuthServiceStub(channel)

    async def verify(self, deployment_id: DeploymentId) -> None:
        """Returns when the deployment is the tenant's of the call being served.

        Raises:
            NotFoundError: it is not, or there is no such deployment (P-41).
            UnavailableError: auth is away.
        """
        with translated():
            await self._stub.VerifyDeployment(
                auth_service_pb2.VerifyDeploymentRequest(deployment_id=deployment_id)
            )

    async def owner(self, deployment_id: DeploymentId) -> TenantId | None:
        """Returns whose the deployment is, also when it is retired; None for nobody's.

        Raises:
            UnavailableError: auth is away.
        """
        with translated():
            answer = await self._stub.ResolveDeployments(
                auth_service_pb2.ResolveDeploymentsRequest(deployment_ids=[deployment_id])
            )
        return TenantId(answer.tenant_ids[0]) if answer.tenant_ids[0] else None
