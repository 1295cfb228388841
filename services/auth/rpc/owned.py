"""Deployments' and connections' ids over the wire."""

from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.domain import Owned, OwnedKind
from services.auth.rpc.messages import MOST_NAME, effect_message, read_new_owned
from services.auth.rpc.part import Part
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.principal import current_principal

_MOST_DEPLOYMENTS = 256


class OwnedRpc(Part):
    """Which deployment and which connection is whose."""

    async def RegisterDeployment(
        self, request: pb2.RegisterDeploymentRequest, context: Any
    ) -> pb2.RegisterDeploymentResponse:
        await self._service.owned.register(
            current_principal().tenant, read_new_owned(OwnedKind.DEPLOYMENT, request.deployment_id)
        )
        return pb2.RegisterDeploymentResponse()

    async def RetireDeployment(
        self, request: pb2.RetireDeploymentRequest, context: Any
    ) -> pb2.RetireDeploymentResponse:
        revoked, effect = await self._service.owned.retire(
            current_principal().tenant, read_new_owned(OwnedKind.DEPLOYMENT, request.deployment_id)
        )
        return pb2.RetireDeploymentResponse(
            revoked_keys=revoked, effect=effect_message(effect) if effect is not None else None
        )

    async def VerifyDeployment(
        self, request: pb2.VerifyDeploymentRequest, context: Any
    ) -> pb2.VerifyDeploymentResponse:
        deployment_id = text("deployment_id", request.deployment_id, most=MOST_NAME)
        await self._service.owned.verify(
            current_principal().tenant, Owned(OwnedKind.DEPLOYMENT, deployment_id)
        )
        return pb2.VerifyDeploymentResponse()

    async def ResolveDeployments(
        self, request: pb2.ResolveDeploymentsRequest, context: Any
    ) -> pb2.ResolveDeploymentsResponse:
        if not 1 <= len(request.deployment_ids) <= _MOST_DEPLOYMENTS:
            raise InvalidFieldError("deployment_ids", f"must be 1 to {_MOST_DEPLOYMENTS}")
        tenants = await self._service.owned.tenants_of(
            [text("deployment_ids", each, most=MOST_NAME) for each in request.deployment_ids]
        )
        return pb2.ResolveDeploymentsResponse(tenant_ids=[each or "" for each in tenants])

    async def RegisterConnection(
        self, request: pb2.RegisterConnectionRequest, context: Any
    ) -> pb2.RegisterConnectionResponse:
        await self._service.owned.register(
            current_principal().tenant, read_new_owned(OwnedKind.CONNECTION, request.connection_id)
        )
        return pb2.RegisterConnectionResponse()

    async def RetireConnection(
        self, request: pb2.RetireConnectionRequest, context: Any
    ) -> pb2.RetireConnectionResponse:
        revoked, effect = await self._service.owned.retire(
            current_principal().tenant, read_new_owned(OwnedKind.CONNECTION, request.connection_id)
        )
        return pb2.RetireConnectionResponse(
            revoked_keys=revoked, effect=effect_message(effect) if effect is not None else None
        )
