"""provisioner.proto to the domain and back."""

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceServicer
from google.protobuf.timestamp_pb2 import Timestamp

from services.provisioner.creation import Creation
from services.provisioner.deletion import Deletion
from services.provisioner.domain import (
    MOST_NAME_LENGTH,
    MOST_REQUEST_ID_LENGTH,
    DatabaseRole,
    Deployment,
    DeploymentState,
    Operation,
    OperationKind,
    OperationState,
    Wanted,
    deployment_id,
    operation_id,
)
from services.provisioner.ports import Bearer
from services.provisioner.service import DatabaseService, DeploymentService
from services.shared.errors import (
    InvalidFieldError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
    UnauthenticatedError,
)
from services.shared.fields import text
from services.shared.ids import DeploymentId, OperationId
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import Principal, current_caller, current_principal

_MOST_ID_LENGTH = 64
_LIST = "deployments"
_WRITE_SCOPE = "db:write"

_STATES: Mapping[DeploymentState, "pb2.DeploymentState.ValueType"] = {
    DeploymentState.CREATING: pb2.DEPLOYMENT_STATE_CREATING,
    DeploymentState.READY: pb2.DEPLOYMENT_STATE_READY,
    DeploymentState.FAILED: pb2.DEPLOYMENT_STATE_FAILED,
    DeploymentState.DELETING: pb2.DEPLOYMENT_STATE_DELETING,
    DeploymentState.DELETED: pb2.DEPLOYMENT_STATE_DELETED,
}
_KINDS: Mapping[OperationKind, "pb2.OperationKind.ValueType"] = {
    OperationKind.CREATE: pb2.OPERATION_KIND_CREATE,
    OperationKind.DELETE: pb2.OPERATION_KIND_DELETE,
}
_OPERATION_STATES: Mapping[OperationState, "pb2.OperationState.ValueType"] = {
    OperationState.RUNNING: pb2.OPERATION_STATE_RUNNING,
    OperationState.SUCCEEDED: pb2.OPERATION_STATE_SUCCEEDED,
    OperationState.FAILED: pb2.OPERATION_STATE_FAILED,
}
_ROLES: Mapping[int, DatabaseRole] = {
    pb2.DATABASE_ROLE_UNSPECIFIED: DatabaseRole.READER,
    pb2.DATABASE_ROLE_READER: DatabaseRole.READER,
    pb2.DATABASE_ROLE_WRITER: DatabaseRole.WRITER,
}


class ProvisionerRpc(ProvisionerServiceServicer):
    """One method a call: read the request, ask the use case, write the answer."""

    def __init__(
        self,
        creation: Creation,
        deletion: Deletion,
        deployments: DeploymentService,
        databases: DatabaseService,
    ) -> None:
        self._creation = creation
        self._deletion = deletion
        self._deployments = deployments
        self._databases = databases

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
        )
        deployment, operation = await self._creation.create(
            current_principal().tenant, _bearer(), wanted
        )
        return pb2.CreateDeploymentResponse(
            deployment=_deployment(deployment), operation=_operation(operation)
        )

    async def GetDeployment(
        self, request: pb2.GetDeploymentRequest, context: Any
    ) -> pb2.GetDeploymentResponse:
        principal = current_principal()
        asked = _own_or_named(principal, request.deployment_id)
        deployment = await self._deployments.get(principal.tenant, asked)
        return pb2.GetDeploymentResponse(deployment=_deployment(deployment))

    async def ListDeployments(
        self, request: pb2.ListDeploymentsRequest, context: Any
    ) -> pb2.ListDeploymentsResponse:
        tenant = current_principal().tenant
        most = page_size(request.page_size)
        before = page_position(_LIST, tenant, request.page_token)
        found = await self._deployments.list(tenant, before, most + 1)
        positions = [(deployment.create_time, deployment.deployment_id) for deployment in found]
        return pb2.ListDeploymentsResponse(
            deployments=[_deployment(deployment) for deployment in found[:most]],
            next_page_token=next_page_token(_LIST, tenant, positions, most),
        )

    async def DeleteDeployment(
        self, request: pb2.DeleteDeploymentRequest, context: Any
    ) -> pb2.DeleteDeploymentResponse:
        operation = await self._deletion.delete(
            current_principal().tenant, _bearer(), _named(request.deployment_id)
        )
        return pb2.DeleteDeploymentResponse(operation=_operation(operation))

    async def GetOperation(
        self, request: pb2.GetOperationRequest, context: Any
    ) -> pb2.GetOperationResponse:
        operation = await self._deployments.get_operation(
            current_principal().tenant, _named_operation(request.operation_id)
        )
        return pb2.GetOperationResponse(operation=_operation(operation))

    async def WaitOperation(
        self, request: pb2.WaitOperationRequest, context: Any
    ) -> AsyncIterator[pb2.WaitOperationResponse]:
        changes = self._deployments.wait_operation(
            current_principal().tenant, _named_operation(request.operation_id)
        )
        async for operation in changes:
            yield pb2.WaitOperationResponse(operation=_operation(operation))

    async def GetDatabaseConnection(
        self, request: pb2.GetDatabaseConnectionRequest, context: Any
    ) -> pb2.GetDatabaseConnectionResponse:
        principal = current_principal()
        role = _ROLES.get(request.role)
        if role is None:
            raise InvalidFieldError("role", "is unknown")
        if role is DatabaseRole.WRITER and not principal.permits(_WRITE_SCOPE):
            raise PermissionDeniedError(
                f"the key lacks the scope {_WRITE_SCOPE}",
                Reason.SCOPE_MISSING,
                metadata={"scope": _WRITE_SCOPE},
            )
        asked = _own_or_named(principal, request.deployment_id)
        found = await self._databases.connection(principal.tenant, asked, role)
        return pb2.GetDatabaseConnectionResponse(
            host=found.address.host,
            port=found.address.port,
            database=found.database,
            user=found.user,
            password=found.password,
            uri=found.uri,
        )


def _bearer() -> Bearer:
    key = current_caller().bearer
    if key is None:
        raise UnauthenticatedError(Reason.KEY_MISSING)
    return Bearer(key)


def _named(value: str) -> DeploymentId:
    named = deployment_id(text("deployment_id", value, most=_MOST_ID_LENGTH))
    if named is None:
        raise NotFoundError("deployment")
    return named


def _own_or_named(principal: Principal, value: str) -> DeploymentId:
    """Returns the deployment that is asked for; a deployment's own key opens that one alone."""
    own = principal.deployment_id
    if own is None:
        return _named(value)
    if value not in ("", own):
        raise NotFoundError("deployment")
    return own


def _named_operation(value: str) -> OperationId:
    named = operation_id(text("operation_id", value, most=_MOST_ID_LENGTH))
    if named is None:
        raise NotFoundError("operation")
    return named


def _deployment(deployment: Deployment) -> pb2.Deployment:
    return pb2.Deployment(
        deployment_id=deployment.deployment_id,
        name=deployment.name,
        host=deployment.host,
        state=_STATES[deployment.state],
        mcp=deployment.mcp,
        database=deployment.database,
        create_time=_timestamp(deployment.create_time),
    )


def _operation(operation: Operation) -> pb2.Operation:
    return pb2.Operation(
        operation_id=operation.operation_id,
        deployment_id=operation.deployment_id,
        kind=_KINDS[operation.kind],
        state=_OPERATION_STATES[operation.state],
        step=operation.step,
        retries=operation.retries,
        message=operation.message,
        create_time=_timestamp(operation.create_time),
        end_time=None if operation.end_time is None else _timestamp(operation.end_time),
    )


def _timestamp(time: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(time.astimezone(UTC))
    return stamp
