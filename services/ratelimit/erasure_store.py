"""What is kept of deployments that are gone, erased in Postgres: one function a query.

What several replicas remember they write down every second. So it is first written what is gone,
alone: a checkpoint is either committed by then, and erased, or sees what is gone and leaves it out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection

# "limits" in ASCII.
_LOCK: Final = 0x6C696D697473


@dataclass(frozen=True, slots=True)
class Tombstone:
    """When the tenant's counters were erased, and of how many deployments."""

    erased_at: datetime
    deployments: int


async def hold(connection: Connection) -> None:
    """Returns when nothing is declared gone until the commit."""
    await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", _LOCK)


async def _alone(connection: Connection) -> None:
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)


async def release(connection: Connection, tenant: TenantId, deployment: DeploymentId) -> None:
    """Erases what was counted of the tenant's deployment, and lets nothing more be written."""
    await _alone(connection)
    await connection.execute(
        "INSERT INTO releases (deployment_id, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        deployment,
        tenant,
    )
    for table in ("monthly_usage", "local_usage"):
        await connection.execute(
            f"DELETE FROM {table} WHERE tenant_id = $1 AND deployment_id = $2",  # noqa: S608 from above
            tenant,
            deployment,
        )


async def begin(connection: Connection, tenant: TenantId) -> Tombstone | None:
    """Lets nothing more be written of the tenant; returns the tombstone if it is erased already."""
    await _alone(connection)
    await connection.execute(
        "INSERT INTO tombstones (tenant_id) VALUES ($1) ON CONFLICT DO NOTHING", tenant
    )
    row = await connection.fetchrow(
        "SELECT erased_at, deployments FROM tombstones"
        " WHERE tenant_id = $1 AND erased_at IS NOT NULL",
        tenant,
    )
    return None if row is None else Tombstone(row["erased_at"], row["deployments"])


async def counted(connection: Connection, tenant: TenantId) -> Sequence[DeploymentId]:
    """Returns the tenant's deployments of which anything is kept."""
    rows = await connection.fetch(
        "SELECT deployment_id FROM monthly_usage WHERE tenant_id = $1"
        " UNION SELECT deployment_id FROM local_usage WHERE tenant_id = $1"
        " UNION SELECT deployment_id FROM releases WHERE tenant_id = $1",
        tenant,
    )
    return [DeploymentId(row["deployment_id"]) for row in rows]


async def finish(connection: Connection, tenant: TenantId) -> Tombstone:
    """Erases every row of the tenant but the tombstone, which it returns."""
    found: int | None = await connection.fetchval(
        "SELECT count(*) FROM (SELECT deployment_id FROM monthly_usage WHERE tenant_id = $1"
        " UNION SELECT deployment_id FROM local_usage WHERE tenant_id = $1) AS each",
        tenant,
    )
    for table in ("monthly_usage", "local_usage", "releases"):
        await connection.execute(
            f"DELETE FROM {table} WHERE tenant_id = $1",  # noqa: S608 from above
            tenant,
        )
    row = await connection.fetchrow(
        "UPDATE tombstones SET deployments = CASE WHEN erased_at IS NULL THEN $2 ELSE deployments"
        " END, erased_at = coalesce(erased_at, now()) WHERE tenant_id = $1"
        " RETURNING erased_at, deployments",
        tenant,
        found,
    )
    assert row is not None  # noqa: S101 `begin` wrote it, and nobody deletes it
    return Tombstone(row["erased_at"], row["deployments"])


async def purge(connection: Connection) -> None:
    """Forgets releases that no replica remembers counts of any more."""
    await connection.execute("DELETE FROM releases WHERE released_at < now() - interval '1 day'")
