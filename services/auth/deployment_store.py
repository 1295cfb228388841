"""The table of deployments' ids, one function a query."""

from services.auth.store import found
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection


async def register_deployment(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> None:
    """Binds the deployment to the tenant, unless it is bound already.

    Raises:
        NotFoundError: it is another tenant's, or was retired.
    """
    await connection.execute(
        "INSERT INTO deployments (deployment_id, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        deployment_id,
        tenant_id,
    )
    await verify_deployment(connection, tenant_id, deployment_id)


async def verify_deployment(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> None:
    """Returns when the deployment is the tenant's and not retired.

    Raises:
        NotFoundError: otherwise.
    """
    row = await connection.fetchrow(
        "SELECT 1 FROM deployments WHERE tenant_id = $1 AND deployment_id = $2"
        " AND retired_at IS NULL",
        tenant_id,
        deployment_id,
    )
    found(row, "deployment")


async def retire_deployment(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> int | None:
    """Lets no key of the deployment be made again; returns the revocation that ended its keys.

    A deployment that was never registered is retired too, so that it never will be. One of another
    tenant stays as it is, and nothing says that it exists.
    """
    await connection.execute(
        "INSERT INTO deployments (deployment_id, tenant_id, retired_at) VALUES ($1, $2, now())"
        " ON CONFLICT DO NOTHING",
        deployment_id,
        tenant_id,
    )
    sequence: int | None = await connection.fetchval(
        "UPDATE deployments SET retired_at = coalesce(retired_at, now())"
        " WHERE tenant_id = $1 AND deployment_id = $2 RETURNING retired_sequence",
        tenant_id,
        deployment_id,
    )
    return sequence


async def write_retired_sequence(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId, sequence: int
) -> None:
    """Writes the revocation that ended the keys of the retired deployment."""
    await connection.execute(
        "UPDATE deployments SET retired_sequence = $3 WHERE tenant_id = $1 AND deployment_id = $2",
        tenant_id,
        deployment_id,
        sequence,
    )


async def lock_deployment(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> None:
    """Holds the deployment until the transaction ends, so that it is not retired meanwhile.

    Raises:
        NotFoundError: another tenant's, unknown or retired.
    """
    row = await connection.fetchrow(
        "SELECT 1 FROM deployments WHERE tenant_id = $1 AND deployment_id = $2"
        " AND retired_at IS NULL FOR UPDATE",
        tenant_id,
        deployment_id,
    )
    found(row, "deployment")
