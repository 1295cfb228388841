"""The tables of deployments and of what is lent to them, one function a query."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.credentials.domain import Binding, ConnectionState
from services.shared.ids import BindingId, ConnectionId, DeploymentId, TenantId
from services.shared.postgres import Connection as DbConnection

_BINDING = (
    "binding.binding_id, binding.deployment_id, binding.connection_id, binding.alias,"
    " binding.scope_ceiling, binding.expires_at, binding.created_at, connection.provider,"
    " connection.state"
)
_BINDINGS = "bindings AS binding JOIN connections AS connection USING (tenant_id, connection_id)"


@dataclass(frozen=True, slots=True)
class NewRow:
    """A binding on its way into its row."""

    binding_id: BindingId
    deployment_id: DeploymentId
    connection_id: ConnectionId
    # The connection's.
    exclusive: bool
    alias: str
    scope_ceiling: Sequence[str]
    expires_at: datetime | None


async def remember_deployment(db: DbConnection, tenant: TenantId, deployment: DeploymentId) -> bool:
    """Writes down whose the deployment is, once; returns whether that was not known before."""
    status = await db.execute(
        "INSERT INTO deployments (deployment_id, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        deployment,
        tenant,
    )
    return status == "INSERT 0 1"


async def lock_deployment(db: DbConnection, tenant: TenantId, deployment: DeploymentId) -> bool:
    """Holds the deployment until the transaction ends; False: not the tenant's, or it is going."""
    row = await db.fetchrow(
        "SELECT 1 FROM deployments WHERE tenant_id = $1 AND deployment_id = $2"
        " AND released_at IS NULL FOR UPDATE",
        tenant,
        deployment,
    )
    return row is not None


async def release_deployment(db: DbConnection, tenant: TenantId, deployment: DeploymentId) -> int:
    """Lets nothing be lent to the deployment any more; returns how many bindings that ended."""
    await db.execute(
        "UPDATE deployments SET released_at = coalesce(released_at, now())"
        " WHERE tenant_id = $1 AND deployment_id = $2",
        tenant,
        deployment,
    )
    rows = await db.fetch(
        "DELETE FROM bindings WHERE tenant_id = $1 AND deployment_id = $2 RETURNING binding_id",
        tenant,
        deployment,
    )
    return len(rows)


async def suspend_deployment(db: DbConnection, tenant: TenantId, deployment: DeploymentId) -> None:
    """Writes down that nothing is vended to the deployment; it need not be known here yet."""
    await db.execute(
        "INSERT INTO deployments (deployment_id, tenant_id, suspended_at) VALUES ($1, $2, now())"
        " ON CONFLICT (deployment_id) DO UPDATE"
        " SET suspended_at = coalesce(deployments.suspended_at, now())",
        deployment,
        tenant,
    )


async def resume_deployment(db: DbConnection, tenant: TenantId, deployment: DeploymentId) -> None:
    """Writes down that the deployment is vended again what is lent to it."""
    await db.execute(
        "UPDATE deployments SET suspended_at = NULL WHERE tenant_id = $1 AND deployment_id = $2",
        tenant,
        deployment,
    )


async def end_expired(
    db: DbConnection, deployment: DeploymentId, alias: str, connection: ConnectionId
) -> None:
    """Ends what is over and would be in the way of a new binding."""
    await db.execute(
        "DELETE FROM bindings WHERE expires_at <= now()"
        " AND ((deployment_id = $1 AND alias = $2) OR (connection_id = $3 AND exclusive))",
        deployment,
        alias,
        connection,
    )


async def end_expired_of(db: DbConnection, connection: ConnectionId) -> None:
    """Ends what is over of a connection's."""
    await db.execute(
        "DELETE FROM bindings WHERE connection_id = $1 AND expires_at <= now()", connection
    )


async def of_alias(db: DbConnection, deployment: DeploymentId, alias: str) -> Binding | None:
    """Returns what the deployment has under the alias."""
    row = await db.fetchrow(
        f"SELECT {_BINDING} FROM {_BINDINGS}"  # noqa: S608 columns
        " WHERE binding.deployment_id = $1 AND binding.alias = $2",
        deployment,
        alias,
    )
    return None if row is None else _binding(row)


async def holder(
    db: DbConnection, connection: ConnectionId, deployment: DeploymentId, alias: str
) -> DeploymentId | None:
    """Returns a deployment that has the connection, other than `deployment` under `alias`."""
    found = await db.fetchval(
        "SELECT deployment_id FROM bindings"
        " WHERE connection_id = $1 AND NOT (deployment_id = $2 AND alias = $3) LIMIT 1",
        connection,
        deployment,
        alias,
    )
    return None if found is None else DeploymentId(found)


async def count(db: DbConnection, deployment: DeploymentId) -> int:
    """Returns how many bindings the deployment has that are not over."""
    return int(
        await db.fetchval(
            "SELECT count(*) FROM bindings"
            " WHERE deployment_id = $1 AND (expires_at IS NULL OR expires_at > now())",
            deployment,
        )
    )


async def put(db: DbConnection, tenant: TenantId, new: NewRow) -> Binding:
    """Writes the binding, in place of what the deployment has under the alias: one statement."""
    await db.execute(
        "INSERT INTO bindings (binding_id, tenant_id, deployment_id, connection_id, exclusive,"
        " alias, scope_ceiling, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
        " ON CONFLICT (deployment_id, alias) DO UPDATE SET binding_id = excluded.binding_id,"
        " connection_id = excluded.connection_id, exclusive = excluded.exclusive,"
        " scope_ceiling = excluded.scope_ceiling, expires_at = excluded.expires_at,"
        " created_at = excluded.created_at",
        new.binding_id,
        tenant,
        new.deployment_id,
        new.connection_id,
        new.exclusive,
        new.alias,
        list(new.scope_ceiling),
        new.expires_at,
    )
    written = await of_alias(db, new.deployment_id, new.alias)
    if written is None:
        raise LookupError("the binding is gone again")
    return written


async def delete(db: DbConnection, tenant: TenantId, binding: BindingId) -> bool:
    """Ends the binding; returns whether there was one."""
    status = await db.execute(
        "DELETE FROM bindings WHERE tenant_id = $1 AND binding_id = $2", tenant, binding
    )
    return status == "DELETE 1"


async def page(
    db: DbConnection,
    tenant: TenantId,
    deployment: DeploymentId | None,
    connection: ConnectionId | None,
    before: tuple[datetime, str] | None,
    most: int,
) -> list[Binding]:
    """Returns bindings of the tenant, newest first."""
    time, last = before if before is not None else (None, None)
    rows = await db.fetch(
        f"SELECT {_BINDING} FROM {_BINDINGS} WHERE binding.tenant_id = $1"  # noqa: S608 columns
        " AND ($2::text IS NULL OR binding.deployment_id = $2)"
        " AND ($3::text IS NULL OR binding.connection_id = $3)"
        " AND ($4::timestamptz IS NULL"
        " OR (binding.created_at, binding.binding_id) < ($4, $5::text))"
        " ORDER BY binding.created_at DESC, binding.binding_id DESC LIMIT $6",
        tenant,
        deployment,
        connection,
        time,
        last,
        most,
    )
    return [_binding(row) for row in rows]


def _binding(row: asyncpg.Record) -> Binding:
    return Binding(
        binding_id=BindingId(row["binding_id"]),
        deployment_id=DeploymentId(row["deployment_id"]),
        connection_id=ConnectionId(row["connection_id"]),
        provider=row["provider"],
        alias=row["alias"],
        scope_ceiling=tuple(row["scope_ceiling"]),
        expires_at=row["expires_at"],
        created_at=row["created_at"],
        state=ConnectionState(row["state"]),
    )
