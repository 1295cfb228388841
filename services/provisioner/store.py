"""The tables of the provisioner, one function a query."""

from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg

from services.provisioner.domain import (
    Deployment,
    DeploymentState,
    Wanted,
)
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection

DEPLOYMENT_COLUMNS = (
    "deployment_id, tenant_id, name, host, state, mcp, database, database_port, generation,"
    " created_at, closed_generation, bucket, bootstrap_admin, storage_bytes, idle_seconds,"
    " source_deployment_id, source_backup_id, listener_port"
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
        f"SELECT {DEPLOYMENT_COLUMNS} FROM deployments WHERE tenant_id = $1 AND request_id = $2",  # noqa: S608 columns
        tenant,
        request_id,
    )
    return None if row is None else deployment_of_row(row)


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
        f" $13) RETURNING {DEPLOYMENT_COLUMNS}",
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
    return deployment_of_row(some(row))


async def get_deployment(
    connection: Connection, deployment_id: DeploymentId, *, lock: bool = False
) -> Deployment | None:
    """Returns the deployment; with `lock`, nobody else changes it in this transaction's time."""
    row = await connection.fetchrow(
        f"SELECT {DEPLOYMENT_COLUMNS} FROM deployments WHERE deployment_id = $1"  # noqa: S608 columns
        + (" FOR UPDATE" if lock else ""),
        deployment_id,
    )
    return None if row is None else deployment_of_row(row)


async def list_deployments(
    connection: Connection,
    tenant: TenantId,
    before: tuple[datetime, str] | None,
    most: int,
) -> list[Deployment]:
    """Returns the tenant's deployments that are not deleted, newest first."""
    time, last = before if before is not None else (None, None)
    rows = await connection.fetch(
        f"SELECT {DEPLOYMENT_COLUMNS} FROM deployments WHERE tenant_id = $1 AND state <> 'deleted'"  # noqa: S608 columns
        " AND ($2::timestamptz IS NULL OR (created_at, deployment_id) < ($2, $3::text))"
        " ORDER BY created_at DESC, deployment_id DESC LIMIT $4",
        tenant,
        time,
        last,
        most,
    )
    return [deployment_of_row(row) for row in rows]


async def set_state(
    connection: Connection, deployment_id: DeploymentId, state: DeploymentState
) -> None:
    """Writes how far the deployment is."""
    await connection.execute(
        "UPDATE deployments SET state = $2,"
        " suspended_at = CASE WHEN $2 = 'suspended' THEN now() END,"
        " listener_port = CASE WHEN $2 <> 'deleted' THEN listener_port END,"
        " deleted_at = CASE WHEN $2 = 'deleted' THEN now() END WHERE deployment_id = $1",
        deployment_id,
        state,
    )


async def change(
    connection: Connection,
    deployment_id: DeploymentId,
    storage_bytes: int | None,
    idle_timeout: timedelta | None,
) -> Deployment:
    """Writes what is to be different, and returns the deployment as it is then."""
    row = await connection.fetchrow(
        "UPDATE deployments SET storage_bytes = coalesce($2, storage_bytes),"  # noqa: S608 columns
        " idle_seconds = coalesce($3, idle_seconds)"
        f" WHERE deployment_id = $1 RETURNING {DEPLOYMENT_COLUMNS}",
        deployment_id,
        storage_bytes,
        None if idle_timeout is None else idle_timeout.total_seconds(),
    )
    return deployment_of_row(some(row))


async def set_generation(
    connection: Connection, deployment_id: DeploymentId, generation: int
) -> None:
    """Writes which passwords are given to whoever asks for the way into the database."""
    await connection.execute(
        "UPDATE deployments SET generation = greatest(generation, $2) WHERE deployment_id = $1",
        deployment_id,
        generation,
    )


async def set_closed_generation(
    connection: Connection, deployment_id: DeploymentId, generation: int
) -> None:
    """Writes that the passwords of the generation, and those before, open nothing any more."""
    await connection.execute(
        "UPDATE deployments SET closed_generation = greatest(closed_generation, $2)"
        " WHERE deployment_id = $1",
        deployment_id,
        generation,
    )


async def set_database_port(connection: Connection, deployment_id: DeploymentId, port: int) -> None:
    """Writes where the deployment's database listens."""
    await connection.execute(
        "UPDATE deployments SET database_port = $2 WHERE deployment_id = $1", deployment_id, port
    )


async def keep_listener_port(
    connection: Connection, deployment_id: DeploymentId, port: int
) -> int | None:
    """Returns the public port of the deployment's database: `port` if it had none.

    None when it had none and `port` is another's, or it is deleted.
    """
    await connection.execute(
        "UPDATE deployments SET listener_port = $2 WHERE deployment_id = $1"
        " AND listener_port IS NULL AND state <> 'deleted'"
        " AND NOT EXISTS (SELECT FROM deployments WHERE listener_port = $2)",
        deployment_id,
        port,
    )
    kept = await connection.fetchval(
        "SELECT listener_port FROM deployments WHERE deployment_id = $1", deployment_id
    )
    return None if kept is None else int(kept)


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


def deployment_of_row(row: asyncpg.Record) -> Deployment:
    """Returns what `DEPLOYMENT_COLUMNS` of a row say."""
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


def some(row: asyncpg.Record | None) -> asyncpg.Record:
    """Returns the row that a statement cannot but return."""
    if row is None:
        raise LookupError("the statement returned no row")
    return row
