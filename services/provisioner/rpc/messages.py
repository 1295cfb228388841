"""provisioner.proto to the domain and back: what its parts share."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.provisioner.domain import (
    DatabaseRole,
    Deployment,
    DeploymentState,
    Described,
    Operation,
    OperationKind,
    OperationState,
    Resource,
    ResourceKind,
    ResourceState,
    deployment_id,
    operation_id,
)
from services.provisioner.ports import Bearer
from services.shared.errors import (
    InvalidFieldError,
    NotFoundError,
    Reason,
    UnauthenticatedError,
)
from services.shared.fields import text
from services.shared.ids import DeploymentId, OperationId
from services.shared.principal import Principal, current_caller

_MOST_ID_LENGTH = 64

_STATES: Mapping[DeploymentState, "pb2.DeploymentState.ValueType"] = {
    DeploymentState.CREATING: pb2.DEPLOYMENT_STATE_CREATING,
    DeploymentState.READY: pb2.DEPLOYMENT_STATE_READY,
    DeploymentState.FAILED: pb2.DEPLOYMENT_STATE_FAILED,
    DeploymentState.DELETING: pb2.DEPLOYMENT_STATE_DELETING,
    DeploymentState.DELETED: pb2.DEPLOYMENT_STATE_DELETED,
    DeploymentState.SUSPENDED: pb2.DEPLOYMENT_STATE_SUSPENDED,
}
_KINDS: Mapping[OperationKind, "pb2.OperationKind.ValueType"] = {
    OperationKind.CREATE: pb2.OPERATION_KIND_CREATE,
    OperationKind.DELETE: pb2.OPERATION_KIND_DELETE,
    OperationKind.SUSPEND: pb2.OPERATION_KIND_SUSPEND,
    OperationKind.RESUME: pb2.OPERATION_KIND_RESUME,
    OperationKind.ROTATE: pb2.OPERATION_KIND_ROTATE,
    OperationKind.BACK_UP: pb2.OPERATION_KIND_BACK_UP,
    OperationKind.DELETE_TENANT: pb2.OPERATION_KIND_DELETE_TENANT,
}
OPERATION_STATES: Final[Mapping[OperationState, "pb2.OperationState.ValueType"]] = {
    OperationState.RUNNING: pb2.OPERATION_STATE_RUNNING,
    OperationState.SUCCEEDED: pb2.OPERATION_STATE_SUCCEEDED,
    OperationState.FAILED: pb2.OPERATION_STATE_FAILED,
}
ROLES: Final[Mapping[int, DatabaseRole]] = {
    pb2.DATABASE_ROLE_UNSPECIFIED: DatabaseRole.READER,
    pb2.DATABASE_ROLE_READER: DatabaseRole.READER,
    pb2.DATABASE_ROLE_WRITER: DatabaseRole.WRITER,
}
RESOURCE_KINDS: Final[Mapping[ResourceKind, "pb2.ResourceKind.ValueType"]] = {
    ResourceKind.KEYS: pb2.RESOURCE_KIND_KEYS,
    ResourceKind.ROUTE: pb2.RESOURCE_KIND_ROUTE,
    ResourceKind.LOANS: pb2.RESOURCE_KIND_LOANS,
    ResourceKind.COUNTERS: pb2.RESOURCE_KIND_COUNTERS,
    ResourceKind.DATABASE: pb2.RESOURCE_KIND_DATABASE,
    ResourceKind.BUCKET: pb2.RESOURCE_KIND_BUCKET,
    ResourceKind.SECRETS: pb2.RESOURCE_KIND_SECRETS,
    ResourceKind.BACKUPS: pb2.RESOURCE_KIND_BACKUPS,
}
_RESOURCE_STATES: Mapping[ResourceState, "pb2.ResourceState.ValueType"] = {
    ResourceState.PENDING: pb2.RESOURCE_STATE_PENDING,
    ResourceState.READY: pb2.RESOURCE_STATE_READY,
    ResourceState.SLEEPING: pb2.RESOURCE_STATE_SLEEPING,
    ResourceState.SUSPENDED: pb2.RESOURCE_STATE_SUSPENDED,
    ResourceState.DEGRADED: pb2.RESOURCE_STATE_DEGRADED,
    ResourceState.LOST: pb2.RESOURCE_STATE_LOST,
    ResourceState.GOING: pb2.RESOURCE_STATE_GOING,
    ResourceState.GONE: pb2.RESOURCE_STATE_GONE,
}


def bearer() -> Bearer:
    """Returns the presented key."""
    key = current_caller().bearer
    if key is None:
        raise UnauthenticatedError(Reason.KEY_MISSING)
    return Bearer(key)


def named(value: str) -> DeploymentId:
    """Returns the deployment that a field names.

    Raises:
        InvalidFieldError: it names none.
        NotFoundError: nothing can have that id.
    """
    found = deployment_id(text("deployment_id", value, most=_MOST_ID_LENGTH))
    if found is None:
        raise NotFoundError("deployment")
    return found


def own_or_named(principal: Principal, value: str) -> DeploymentId:
    """Returns the deployment that is asked for; a deployment's own key opens that one alone."""
    own = principal.deployment_id
    if own is None:
        return named(value)
    if value not in ("", own):
        raise NotFoundError("deployment")
    return own


def named_operation(value: str) -> OperationId:
    """Returns the operation that a field names; raises as `named`."""
    found = operation_id(text("operation_id", value, most=_MOST_ID_LENGTH))
    if found is None:
        raise NotFoundError("operation")
    return found


def deployment_message(
    deployment: Deployment,
    resources: Sequence[Resource] = (),
    last_operation: Operation | None = None,
) -> pb2.Deployment:
    """Returns the deployment as the contract has it, with what is known of its parts."""
    return pb2.Deployment(
        deployment_id=deployment.deployment_id,
        name=deployment.name,
        host=deployment.host,
        state=_STATES[deployment.state],
        mcp=deployment.mcp,
        database=deployment.database,
        create_time=timestamp(deployment.create_time),
        bucket=deployment.bucket,
        bootstrap_admin=deployment.bootstrap_admin,
        storage_bytes=deployment.storage_bytes,
        idle_timeout=duration(deployment.idle_timeout),
        source_deployment_id=deployment.source_deployment_id or "",
        source_backup_id=deployment.source_backup_id or "",
        resources=[_resource(resource) for resource in resources],
        last_operation=None if last_operation is None else operation_message(last_operation),
    )


def described_message(described: Described) -> pb2.Deployment:
    """Returns the deployment as the contract has it, with all that is known of it."""
    return deployment_message(described.deployment, described.resources, described.last_operation)


def _resource(resource: Resource) -> pb2.Resource:
    measured = resource.measure_time
    return pb2.Resource(
        kind=RESOURCE_KINDS[resource.kind],
        state=_RESOURCE_STATES[resource.state],
        reason=resource.reason,
        since_time=timestamp(resource.since),
        used_bytes=resource.used_bytes or 0,
        measure_time=None if measured is None else timestamp(measured),
        over_quota=resource.over_quota,
    )


def operation_message(operation: Operation) -> pb2.Operation:
    """Returns the operation as the contract has it."""
    return pb2.Operation(
        operation_id=operation.operation_id,
        deployment_id=operation.deployment_id,
        kind=_KINDS[operation.kind],
        state=OPERATION_STATES[operation.state],
        step=operation.step,
        retries=operation.retries,
        message=operation.message,
        create_time=timestamp(operation.create_time),
        end_time=None if operation.end_time is None else timestamp(operation.end_time),
    )


def length_of_time(field: str, message: Duration, *, most: timedelta) -> timedelta:
    """Returns the length of time that a field holds, zero to `most`.

    Raises:
        InvalidFieldError: it is less, more, or none.
    """
    try:
        message.ToJsonString()
        length = timedelta(seconds=message.seconds, microseconds=message.nanos // 1_000)
    except (ValueError, OverflowError) as error:
        raise InvalidFieldError(field, "is no length of time") from error
    if not timedelta(0) <= length <= most:
        raise InvalidFieldError(field, f"must be zero to {round(most.total_seconds())} seconds")
    return length


def timestamp(time: datetime) -> Timestamp:
    """Returns the moment as the contract has it."""
    stamp = Timestamp()
    stamp.FromDatetime(time.astimezone(UTC))
    return stamp


def duration(length: timedelta) -> Duration:
    """Returns the length of time as the contract has it."""
    message = Duration()
    message.FromTimedelta(length)
    return message
