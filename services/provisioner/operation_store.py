"""The operations on deployments, one function a query."""

import json
from collections.abc import Sequence
from datetime import timedelta

import asyncpg

from services.provisioner.domain import (
    Deployment,
    Operation,
    OperationKind,
    OperationState,
    Step,
)
from services.provisioner.store import some
from services.shared.ids import DeploymentId, OperationId
from services.shared.postgres import Connection

OPERATIONS_CHANNEL = "operations"

_OPERATION = (
    "operation_id, tenant_id, deployment_id, kind, state, step, retries, message, created_at,"
    " ended_at, parameters"
)


async def insert(
    connection: Connection,
    deployment: Deployment,
    operation_id: OperationId,
    kind: OperationKind,
    step: Step,
    sealed_key: bytes,
) -> Operation:
    """Writes an operation that is yet to be done."""
    row = await connection.fetchrow(
        "INSERT INTO operations (operation_id, tenant_id, deployment_id, kind, state, step,"  # noqa: S608 columns
        f" sealed_key) VALUES ($1, $2, $3, $4, 'running', $5, $6) RETURNING {_OPERATION}",
        operation_id,
        deployment.tenant_id,
        deployment.deployment_id,
        kind,
        step,
        sealed_key,
    )
    return _operation(some(row))


async def revive(connection: Connection, operation_id: OperationId, sealed_key: bytes) -> Operation:
    """Begins a failed operation anew, where it was."""
    row = await connection.fetchrow(
        "UPDATE operations SET state = 'running', ended_at = NULL, retries = 0, message = '',"  # noqa: S608 columns
        f" next_try_at = now(), sealed_key = $2 WHERE operation_id = $1 RETURNING {_OPERATION}",
        operation_id,
        sealed_key,
    )
    return _operation(some(row))


async def get(connection: Connection, operation_id: OperationId) -> Operation | None:
    """Returns the operation."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION} FROM operations WHERE operation_id = $1",  # noqa: S608 columns
        operation_id,
    )
    return None if row is None else _operation(row)


async def of_kind(
    connection: Connection, deployment_id: DeploymentId, kind: OperationKind
) -> Operation | None:
    """Returns the deployment's operation of that kind; it has at most one."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION} FROM operations WHERE deployment_id = $1 AND kind = $2",  # noqa: S608 columns
        deployment_id,
        kind,
    )
    return None if row is None else _operation(row)


async def running_of(
    connection: Connection, deployment_id: DeploymentId
) -> tuple[Operation, bytes, timedelta] | None:
    """Returns what is to be done for the deployment, its sealed key, and how long to wait first."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION}, sealed_key,"  # noqa: S608 columns
        " greatest(next_try_at - now(), interval '0') AS wait"
        " FROM operations WHERE deployment_id = $1 AND state = 'running'"
        " ORDER BY created_at DESC LIMIT 1",
        deployment_id,
    )
    return None if row is None else (_operation(row), bytes(row["sealed_key"]), row["wait"])


async def set_step(connection: Connection, operation_id: OperationId, step: Step) -> None:
    """Writes what is being done."""
    await connection.execute(
        "UPDATE operations SET step = $2 WHERE operation_id = $1 AND state = 'running'",
        operation_id,
        step,
    )


async def set_retry(
    connection: Connection, operation_id: OperationId, message: str, delay: timedelta
) -> None:
    """Counts a failed try, and writes when the next one is due."""
    await connection.execute(
        "UPDATE operations SET retries = retries + 1, message = $2, next_try_at = now() + $3"
        " WHERE operation_id = $1 AND state = 'running'",
        operation_id,
        message,
        delay,
    )


async def set_next_try(connection: Connection, operation_id: OperationId, delay: timedelta) -> None:
    """Writes when the operation is looked at again; nothing has failed."""
    await connection.execute(
        "UPDATE operations SET next_try_at = now() + $2"
        " WHERE operation_id = $1 AND state = 'running'",
        operation_id,
        delay,
    )


async def end(
    connection: Connection, operation_id: OperationId, state: OperationState, message: str
) -> None:
    """Ends the operation and erases its key."""
    await connection.execute(
        "UPDATE operations SET state = $2, message = $3, ended_at = now(), sealed_key = NULL"
        " WHERE operation_id = $1 AND state = 'running'",
        operation_id,
        state,
        message,
    )


async def neglected_deployments(connection: Connection) -> Sequence[DeploymentId]:
    """Returns every deployment with work that is due and that no entry of the queue waits for.

    An entry that was picked may have been picked by a process that is gone, so it does not count.
    """
    rows = await connection.fetch(
        "SELECT DISTINCT deployment_id FROM operations"
        " WHERE state = 'running' AND next_try_at <= now() AND NOT EXISTS ("
        "  SELECT FROM pgqueuer WHERE status = 'queued'"
        "  AND payload = convert_to(operations.deployment_id, 'UTF8'))"
    )
    return [row["deployment_id"] for row in rows]


def _operation(row: asyncpg.Record) -> Operation:
    return Operation(
        operation_id=row["operation_id"],
        tenant_id=row["tenant_id"],
        deployment_id=row["deployment_id"],
        kind=OperationKind(row["kind"]),
        state=OperationState(row["state"]),
        step=Step(row["step"]),
        retries=row["retries"],
        message=row["message"],
        create_time=row["created_at"],
        end_time=row["ended_at"],
        parameters=json.loads(row["parameters"]),
    )
