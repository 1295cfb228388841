"""Deployments and what they are made of, as text."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.fitting import fitted
from cli.patience import idle_text
from cli.rendering import document, enum_text, fields, minute_text, table, time_text
from cli.sizes import size_text
from cli.steps import step_text

_WRAPPED_REASON: Mapping[str, int] = MappingProxyType({"reason": 16, "size": 10})
_OVER_QUOTA = "over its quota: writes are refused"


def deployment_text(deployment: pb.Deployment) -> str:
    """Returns all that is known of one deployment."""
    parts = [_fields(deployment)]
    if deployment.resources:
        parts.append(_resources(deployment))
    if trouble := _failed(deployment):
        parts.append(trouble)
    return "\n\n".join(parts)


def deployment_table(deployments: Sequence[pb.Deployment]) -> str:
    """Returns a line for each deployment."""
    if not deployments:
        return "no deployments yet; make one: bulkhead deployment create NAME --mcp --database"
    rows = [(one.deployment_id, one.name, state_text(one), one.host) for one in deployments]
    return table(("deployment", "name", "state", "host"), rows)


def state_text(deployment: pb.Deployment) -> str:
    """Returns `ready`, `suspended`, and so on."""
    return enum_text(pb.DeploymentState.Name(deployment.state), "DEPLOYMENT_STATE_")


def with_operation(shown: dict[str, Any], operation: pb.Operation) -> dict[str, Any]:
    """Returns the document with the operation that it goes on in."""
    return {
        **shown,
        "operation_id": operation.operation_id,
        "operation": document(operation),
    }


def _fields(deployment: pb.Deployment) -> str:
    database = deployment.database
    return fields(
        {
            "deployment": deployment.deployment_id,
            "name": deployment.name,
            "host": deployment.host,
            "state": state_text(deployment),
            "has": _has(deployment),
            "may hold": size_text(deployment.storage_bytes) if database else "",
            "sleeps": idle_text(deployment.idle_timeout) if database else "",
            "copy of": deployment.source_backup_id or deployment.source_deployment_id,
            "created": time_text(deployment.create_time),
            "last done": _last(deployment),
        }
    )


def _has(deployment: pb.Deployment) -> str:
    parts = {
        "mcp": deployment.mcp,
        "database": deployment.database,
        "bucket": deployment.bucket,
        "admin": deployment.bootstrap_admin,
    }
    return ", ".join(part for part, has in parts.items() if has)


def _resources(deployment: pb.Deployment) -> str:
    found = deployment.resources
    columns = {
        "kind": [enum_text(pb.ResourceKind.Name(one.kind), "RESOURCE_KIND_") for one in found],
        "state": [enum_text(pb.ResourceState.Name(one.state), "RESOURCE_STATE_") for one in found],
        "since": [minute_text(one.since_time) for one in found],
        "size": [_size(one, deployment.storage_bytes) for one in found],
        "reason": [_reason(one) for one in found],
    }
    return fitted(columns, _WRAPPED_REASON, ())


def _size(resource: pb.Resource, quota: int) -> str:
    if not resource.HasField("measure_time"):
        return ""
    return f"{size_text(resource.used_bytes)} of {size_text(quota)}"


def _reason(resource: pb.Resource) -> str:
    own = [_OVER_QUOTA] if resource.over_quota else []
    return "; ".join([*own, *([resource.reason] if resource.reason else [])])


def _last(deployment: pb.Deployment) -> str:
    if not deployment.HasField("last_operation"):
        return ""
    last = deployment.last_operation
    kind = enum_text(pb.OperationKind.Name(last.kind), "OPERATION_KIND_")
    state = enum_text(pb.OperationState.Name(last.state), "OPERATION_STATE_")
    if last.state == pb.OPERATION_STATE_RUNNING:
        return f"{kind}, {state}: {step_text(last.step)}"
    return f"{kind}, {state} {time_text(last.end_time)}"


def _failed(deployment: pb.Deployment) -> str:
    """Returns why the last operation failed, or is tried again."""
    last = deployment.last_operation
    if not last.message:
        return ""
    tries = f" (tried {last.retries + 1} times)" if last.retries else ""
    return f"{last.operation_id}, {step_text(last.step)}{tries}: {last.message}"
