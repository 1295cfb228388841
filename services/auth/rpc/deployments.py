"""Deployments' ids over the wire."""

from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.rpc.messages import MOST_NAME, effect_message, read_new_deployment_id
from services.auth.rpc.part import Part
from services.shared.fields import text
from services.shared.ids import DeploymentId
from services.shared.principal import current_principal


class DeploymentsRpc(Part):
    """Which deployment is whose."""

    async def RegisterDeployment(
        self, request: pb2.RegisterDeploymentRequest, context: Any
    ) -> pb2.RegisterDeploymentResponse:
        await self._service.deployments.register(
            current_principal().tenant, read_new_deployment_id(request.deployment_id)
        )
        return pb2.RegisterDeploymentResponse()

    async def RetireDeployment(
        self, request: pb2.RetireDeploymentRequest, context: Any
    ) -> pb2.RetireDeploymentResponse:
        revoked, effect = await self._service.deployments.retire(
            current_principal().tenant, read_new_deployment_id(request.deployment_id)
        )
        return pb2.RetireDeploymentResponse(
            revoked_keys=revoked, effect=effect_message(effect) if effect is not None else None
        )

    async def VerifyDeployment(
        self, request: pb2.VerifyDeploymentRequest, context: Any
    ) -> pb2.VerifyDeploymentResponse:
        await self._service.deployments.verify(
            current_principal().tenant,
            DeploymentId(text("deployment_id", request.deployment_id, most=MOST_NAME)),
        )
        return pb2.VerifyDeploymentResponse()
