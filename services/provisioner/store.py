"""The tables of the provisioner, one function a query."""

import json
from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg

from services.provisioner.domain import (
    Deployment,
    DeploymentState,
    Operation,
    OperationKind,
    OperationState,
    Step,
    Wanted,
)
from services.shared.ids import DeploymentId, OperationId, TenantId
from services.shared.postgres import Connection

OPERATIONS_CHANNEL = "operations"

_DEPLOYMENT = (
    "deployment_id, tenant_id, name, host, state, mcp, database, database_port, generation,"
    " created_at, closed_generation, bucket, bootstrap_admin, storage_bytes, idle_seconds,"
    " source_deployment_id, source_backup_id, listener_port"
)
_OPERATION = (
    "operation_id, tenant_id, deployment_id, kind, state, step, retries, message, created_at,"
    " ended_at, parameters"
)


async def lock_tenant(connection: Connection, tenant: TenantId) -> None:
    """Returns when no other transaction creates deployments of the tenant."""
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('tenant ' || $1, 0))", tenant
    )


async def deployment_of_request(
    connection: Connection, tenant: TenantId, request_id: str
) -> Deployment | None:
    """Returns what an earlier call with the same request_id made."""
    row = await connection.fetchrow(
        f"SELECT {_DEPLOYMENT} FROM deployments WHERE tenant_id = $1 AND request_id = $2",  # noqa: S608 columns
        tenant,
        request_id,
    )
    return None if row is None else _deployment(row)


async def count_deployments(connection: Connection, tenant: TenantId) -> int:
    """Returns how many deployments the tenant has that are not deleted."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM deployments WHERE tenant_id = $1 AND state <> 'deleted'", tenant
        )
    )


async def insert_deployment(
    connection: Connection,
    tenant: TenantId,
    deployment_id: DeploymentId,
    host: str,
    wanted: Wanted,
) -> Deployment:
    """Writes a deployment that is yet to be made."""
    row = await connection.fetchrow(
        "INSERT INTO deployments (deployment_id, tenant_id, request_id, name, host, state, mcp,"  # noqa: S608 columns
        " database, bucket, bootstrap_admin, storage_bytes, idle_seconds, source_deployment_id,"
        " source_backup_id) VALUES ($1, $2, $3, $4, $5, 'creating', $6, $7, $8, $9, $10, $11, $12,"
        f" $13) RETURNING {_DEPLOYMENT}",
        deployment_id,
        tenant,
        wanted.request_id,
        wanted.name,
        host,
        wanted.mcp,
        wanted.database,
        wanted.bucket,
        wanted.bootstrap_admin,
        wanted.storage_bytes,
        wanted.idle_timeout.total_seconds(),
        wanted.source_deployment_id,
        wanted.source_backup_id,
    )
    return _deployment(_some(row))


async def get_deployment(
    connection: Connection, deployment_id: DeploymentId, *, lock: bool = False
) -> Deployment | None:
    """Returns the deployment; with `lock`, nobody else changes it in this transaction's time."""
    row = await connection.fetchrow(
        f"SELECT {_DEPLOYMENT} FROM deployments WHERE deployment_id = $1"  # noqa: S608 columns
        + (" FOR UPDATE" if lock else ""),
        deployment_id,
    )
    return None if row is None else _deployment(row)


async def list_deployments(
    connection: Connection,
    tenant: TenantId,
    before: tuple[datetime, str] | None,
    most: int,
) -> list[Deployment]:
    """Returns the tenant's deployments that are not deleted, newest first."""
    time, last = before if before is not None else (None, None)
    rows = await connection.fetch(
        f"SELECT {_DEPLOYMENT} FROM deployments WHERE tenant_id = $1 AND state <> 'deleted'"  # noqa: S608 columns
        " AND ($2::timestamptz IS NULL OR (created_at, deployment_id) < ($2, $3::text))"
        " ORDER BY created_at DESC, deployment_id DESC LIMIT $4",
        tenant,
        time,
        last,
        most,
    )
    return [_deployment(row) for row in rows]


async def set_state(
    connection: Connection, deployment_id: DeploymentId, state: DeploymentState
) -> None:
    """Writes how far the deployment is."""
    await connection.execute(
        "UPDATE deployments SET state = $2,"
        " deleted_at = CASE WHEN $2 = 'deleted' THEN now() END WHERE deployment_id = $1",
        deployment_id,
        state,
    )


async def set_database_port(connection: Connection, deployment_id: DeploymentId, port: int) -> None:
    """Writes where the deployment's database listens."""
    await connection.execute(
        "UPDATE deployments SET database_port = $2 WHERE deployment_id = $1", deployment_id, port
    )


async def insert_operation(
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
    return _operation(_some(row))


async def revive_operation(
    connection: Connection, operation_id: OperationId, sealed_key: bytes
) -> Operation:
    """Begins a failed operation anew, where it was."""
    row = await connection.fetchrow(
        "UPDATE operations SET state = 'running', ended_at = NULL, retries = 0, message = '',"  # noqa: S608 columns
        f" next_try_at = now(), sealed_key = $2 WHERE operation_id = $1 RETURNING {_OPERATION}",
        operation_id,
        sealed_key,
    )
    return _operation(_some(row))


async def get_operation(connection: Connection, operation_id: OperationId) -> Operation | None:
    """Returns the operation."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION} FROM operations WHERE operation_id = $1",  # noqa: S608 columns
        operation_id,
    )
    return None if row is None else _operation(row)


async def operation_of(
    connection: Connection, deployment_id: DeploymentId, kind: OperationKind
) -> Operation | None:
    """Returns the deployment's operation of that kind; it has at most one."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION} FROM operations WHERE deployment_id = $1 AND kind = $2",  # noqa: S608 columns
        deployment_id,
        kind,
    )
    return None if row is None else _operation(row)


async def running_operation(
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


async def end_operation(
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


async def ready_deployments_with_database(connection: Connection) -> Sequence[DeploymentId]:
    """Returns every deployment whose database has to be running."""
    rows = await connection.fetch(
        "SELECT deployment_id FROM deployments WHERE state = 'ready' AND database"
    )
    return [row["deployment_id"] for row in rows]


async def installation_mark(connection: Connection) -> str:
    """Returns which provisioner's servers these are; decided the first time."""
    await connection.execute(
        "INSERT INTO installation (mark) VALUES (gen_random_uuid()::text) ON CONFLICT DO NOTHING"
    )
    return str(await connection.fetchval("SELECT mark FROM installation"))


def _deployment(row: asyncpg.Record) -> Deployment:
    return Deployment(
        deployment_id=row["deployment_id"],
        tenant_id=row["tenant_id"],
        name=row["name"],
        host=row["host"],
        state=DeploymentState(row["state"]),
        mcp=row["mcp"],
        database=row["database"],
        create_time=row["created_at"],
        database_port=row["database_port"],
        generation=row["generation"],
        closed_generation=row["closed_generation"],
        bucket=row["bucket"],
        bootstrap_admin=row["bootstrap_admin"],
        storage_bytes=row["storage_bytes"],
        idle_timeout=timedelta(seconds=row["idle_seconds"]),
        source_deployment_id=row["source_deployment_id"],
        source_backup_id=row["source_backup_id"],
        listener_port=row["listener_port"],
    )


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


def _some(row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None:
        raise LookupError("the statement returned no row")
    return row
