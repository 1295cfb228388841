"""Secrets and first administrators of deployments, one function a query."""

from dataclasses import dataclass, field

from services.provisioner.domain import Deployment
from services.provisioner.secret_rules import Administrator, Secret
from services.provisioner.store import some
from services.shared.crypto import Place
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A secret as it is kept."""

    name: str
    sealed: bytes = field(repr=False)


def secret_place(deployment_id: DeploymentId, name: str) -> Place:
    """Returns where the value of that secret belongs."""
    return Place("secrets", f"{deployment_id}/{name}", "sealed_value")


def password_place(deployment_id: DeploymentId) -> Place:
    """Returns where the first administrator's password belongs."""
    return Place("bootstrap_admins", deployment_id, "sealed_password")


async def hold_off_deletion(connection: Connection, tenant: TenantId) -> None:
    """Returns when the tenant's deletion can not begin before the transaction has ended.

    The trigger of each new row takes the same lock. Taken before any row's, it cannot lead to two
    that wait for each other.
    """
    await connection.execute(
        "SELECT pg_advisory_xact_lock_shared(hashtextextended('tombstone ' || $1, 0))", tenant
    )


async def count_others(connection: Connection, deployment_id: DeploymentId, name: str) -> int:
    """Returns how many secrets the deployment has beside the one of that name."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM secrets WHERE deployment_id = $1 AND name <> $2",
            deployment_id,
            name,
        )
    )


async def put_secret(
    connection: Connection, deployment: Deployment, name: str, sealed: bytes, *, generated: bool
) -> Secret:
    """Keeps a secret, in place of one of the same name."""
    row = await connection.fetchrow(
        "INSERT INTO secrets (deployment_id, tenant_id, name, sealed_value, generated)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (deployment_id, name) DO UPDATE"
        " SET sealed_value = $4, generated = $5, updated_at = now() RETURNING updated_at",
        deployment.deployment_id,
        deployment.tenant_id,
        name,
        sealed,
        generated,
    )
    return Secret(name, generated, some(row)["updated_at"])


async def list_secrets(connection: Connection, deployment_id: DeploymentId) -> list[Secret]:
    """Returns the deployment's secrets, in the order of their names."""
    rows = await connection.fetch(
        "SELECT name, generated, updated_at FROM secrets WHERE deployment_id = $1"
        ' ORDER BY name COLLATE "C"',
        deployment_id,
    )
    return [Secret(row["name"], row["generated"], row["updated_at"]) for row in rows]


async def sealed_secrets(connection: Connection, deployment_id: DeploymentId) -> list[SealedSecret]:
    """Returns the deployment's secrets as they are kept."""
    rows = await connection.fetch(
        "SELECT name, sealed_value FROM secrets WHERE deployment_id = $1", deployment_id
    )
    return [SealedSecret(row["name"], row["sealed_value"]) for row in rows]


async def delete_secret(connection: Connection, deployment_id: DeploymentId, name: str) -> None:
    """Deletes the secret, if there is one of that name."""
    await connection.execute(
        "DELETE FROM secrets WHERE deployment_id = $1 AND name = $2", deployment_id, name
    )


async def insert_administrator(
    connection: Connection, deployment: Deployment, known: Administrator, sealed: bytes
) -> None:
    """Keeps the deployment's first administrator, and the password until it is shown."""
    await connection.execute(
        "INSERT INTO bootstrap_admins"
        " (deployment_id, tenant_id, user_name, sealed_password, password_hash)"
        " VALUES ($1, $2, $3, $4, $5)",
        deployment.deployment_id,
        deployment.tenant_id,
        known.user,
        sealed,
        known.password_hash,
    )


async def get_administrator(
    connection: Connection, deployment_id: DeploymentId
) -> Administrator | None:
    """Returns the deployment's first administrator."""
    row = await connection.fetchrow(
        "SELECT user_name, password_hash FROM bootstrap_admins WHERE deployment_id = $1",
        deployment_id,
    )
    return None if row is None else Administrator(row["user_name"], row["password_hash"])


async def take_password(
    connection: Connection, deployment_id: DeploymentId
) -> tuple[str, bytes] | None:
    """Erases the first administrator's password; returns the user and the password, still sealed.

    None when there is none any more. Of many at once, all but one wait for that one, and find none.
    """
    row = await connection.fetchrow(
        "WITH taken AS (SELECT deployment_id, sealed_password FROM bootstrap_admins"
        "  WHERE deployment_id = $1 AND sealed_password IS NOT NULL FOR UPDATE)"
        " UPDATE bootstrap_admins SET sealed_password = NULL, revealed_at = now()"
        " FROM taken WHERE bootstrap_admins.deployment_id = taken.deployment_id"
        " RETURNING bootstrap_admins.user_name, taken.sealed_password",
        deployment_id,
    )
    return None if row is None else (row["user_name"], row["sealed_password"])
