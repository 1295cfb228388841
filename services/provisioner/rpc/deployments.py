"""Deployments, and the operations on them."""

from collections.abc import AsyncIterator
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.rpc.messages import (
    bearer,
    described_message,
    named,
    named_operation,
    operation_message,
    own_or_named,
)
from services.provisioner.rpc.part import Part
from services.provisioner.rpc.wishes import change, wanted
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import current_principal

_LIST = "deployments"


class DeploymentsRpc(Part):
    """Deployments and their operations."""

    async def CreateDeployment(
        self, request: pb2.CreateDeploymentRequest, context: Any
    ) -> pb2.CreateDeploymentResponse:
        wished = wanted(request, self.service.terms)
        deployment, operation = await self.service.creation.create(
            current_principal().tenant, bearer(), wished
        )
        described = await self.service.deployments.describe(deployment)
        return pb2.CreateDeploymentResponse(
            deployment=described_message(described), operation=operation_message(operation)
        )

    async def GetDeployment(
        self, request: pb2.GetDeploymentRequest, context: Any
    ) -> pb2.GetDeploymentResponse:
        principal = current_principal()
        asked = own_or_named(principal, request.deployment_id)
        deployment = await self.service.deployments.get(principal.tenant, asked)
        described = await self.service.deployments.describe(deployment)
        return pb2.GetDeploymentResponse(deployment=described_message(described))

    async def ListDeployments(
        self, request: pb2.ListDeploymentsRequest, context: Any
    ) -> pb2.ListDeploymentsResponse:
        tenant = current_principal().tenant
        most = page_size(request.page_size)
        before = page_position(_LIST, tenant, request.page_token)
        found = await self.service.deployments.list(tenant, before, most + 1)
        positions = [(one.deployment.create_time, one.deployment.deployment_id) for one in found]
        return pb2.ListDeploymentsResponse(
            deployments=[described_message(one) for one in found[:most]],
            next_page_token=next_page_token(_LIST, tenant, positions, most),
        )

    async def UpdateDeployment(
        self, request: pb2.UpdateDeploymentRequest, context: Any
    ) -> pb2.UpdateDeploymentResponse:
        deployment = await self.service.updating.update(
            current_principal().tenant,
            named(request.deployment_id),
            change(request, self.service.terms),
        )
        described = await self.service.deployments.describe(deployment)
        return pb2.UpdateDeploymentResponse(deployment=described_message(described))

    async def SuspendDeployment(
        self, request: pb2.SuspendDeploymentRequest, context: Any
    ) -> pb2.SuspendDeploymentResponse:
        operation = await self.service.suspension.suspend(
            current_principal().tenant, bearer(), named(request.deployment_id)
        )
        return pb2.SuspendDeploymentResponse(operation=operation_message(operation))

    async def ResumeDeployment(
        self, request: pb2.ResumeDeploymentRequest, context: Any
    ) -> pb2.ResumeDeploymentResponse:
        operation = await self.service.suspension.resume(
            current_principal().tenant, bearer(), named(request.deployment_id)
        )
        return pb2.ResumeDeploymentResponse(operation=operation_message(operation))

    async def DeleteDeployment(
        self, request: pb2.DeleteDeploymentRequest, context: Any
    ) -> pb2.DeleteDeploymentResponse:
        operation, token = await self.service.deletion.delete(
            current_principal().tenant, bearer(), named(request.deployment_id)
        )
        return pb2.DeleteDeploymentResponse(
            operation=operation_message(operation), certificate_token=token
        )

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
