"""Deployments, and the operations on them."""

from collections.abc import AsyncIterator
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.domain import MOST_NAME_LENGTH, MOST_REQUEST_ID_LENGTH, Wanted
from services.provisioner.rpc.messages import (
    bearer,
    deployment_message,
    named,
    named_operation,
    operation_message,
    own_or_named,
)
from services.provisioner.rpc.part import Part
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import current_principal

_LIST = "deployments"


class DeploymentsRpc(Part):
    """Deployments and their operations."""

    async def CreateDeployment(
        self, request: pb2.CreateDeploymentRequest, context: Any
    ) -> pb2.CreateDeploymentResponse:
        if request.mcp and not request.database:
            raise InvalidFieldError("mcp", "needs database")
        wanted = Wanted(
            request_id=text("request_id", request.request_id, most=MOST_REQUEST_ID_LENGTH),
            name=text("name", request.name, most=MOST_NAME_LENGTH),
            mcp=request.mcp,
            database=request.database,
            bucket=request.bucket,
            bootstrap_admin=request.bootstrap_admin,
        )
        deployment, operation = await self.service.creation.create(
            current_principal().tenant, bearer(), wanted
        )
        return pb2.CreateDeploymentResponse(
            deployment=deployment_message(deployment), operation=operation_message(operation)
        )

    async def GetDeployment(
        self, request: pb2.GetDeploymentRequest, context: Any
    ) -> pb2.GetDeploymentResponse:
        principal = current_principal()
        asked = own_or_named(principal, request.deployment_id)
        deployment = await self.service.deployments.get(principal.tenant, asked)
        return pb2.GetDeploymentResponse(deployment=deployment_message(deployment))

    async def ListDeployments(
        self, request: pb2.ListDeploymentsRequest, context: Any
    ) -> pb2.ListDeploymentsResponse:
        tenant = current_principal().tenant
        most = page_size(request.page_size)
        before = page_position(_LIST, tenant, request.page_token)
        found = await self.service.deployments.list(tenant, before, most + 1)
        positions = [(deployment.create_time, deployment.deployment_id) for deployment in found]
        return pb2.ListDeploymentsResponse(
            deployments=[deployment_message(deployment) for deployment in found[:most]],
            next_page_token=next_page_token(_LIST, tenant, positions, most),
        )

    async def DeleteDeployment(
        self, request: pb2.DeleteDeploymentRequest, context: Any
    ) -> pb2.DeleteDeploymentResponse:
        operation = await self.service.deletion.delete(
            current_principal().tenant, bearer(), named(request.deployment_id)
        )
        return pb2.DeleteDeploymentResponse(operation=operation_message(operation))

    async def GetOperation(
        self, request: pb2.GetOperationRequest, context: Any
    ) -> pb2.GetOperationResponse:
        operation = await self.service.deployments.get_operation(
            current_principal().tenant, named_operation(request.operation_id)
        )
        return pb2.GetOperationResponse(operation=operation_message(operation))

    async def WaitOperation(
        self, request: pb2.WaitOperationRequest, context: Any
    ) -> AsyncIterator[pb2.WaitOperationResponse]:
        changes = self.service.deployments.wait_operation(
            current_principal().tenant, named_operation(request.operation_id)
        )
        async for operation in changes:
            yield pb2.WaitOperationResponse(operation=operation_message(operation))
