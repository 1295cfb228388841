"""What deletions do with the rows of others, one function a query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from services.provisioner.domain import (
    OperationState,
    Resource,
    ResourceKind,
    Step,
)
from services.provisioner.operation_store import SealedKey
from services.provisioner.resource_store import RESOURCE_COLUMNS, resource_of_row
from services.shared.ids import DeploymentId, OperationId, TenantId
from services.shared.postgres import Connection

# In the order in which the rows can go: what names others before those.
_OWN_TABLES = (
    "secrets",
    "bootstrap_admins",
    "backups",
    "certificates",
    "resources",
    "operations",
    "deployments",
    "data_keys",
)


# A row for each resource of which the reason is known that it is still there, or one without.
_LEFT = (
    "SELECT operations.deployment_id, resources.kind AS kind, operations.state, operations.step,"
    " operations.retries, coalesce(nullif(resources.reason, ''), operations.message) AS message"
    " FROM operations LEFT JOIN resources ON resources.deployment_id = operations.deployment_id"
    "  AND resources.state = 'going' AND resources.reason <> ''"
)


@dataclass(frozen=True, slots=True)
class Child:
    """A deployment of a tenant that is deleted, and the operation that deletes it, if any."""

    deployment_id: DeploymentId
    operation_id: OperationId | None


@dataclass(frozen=True, slots=True)
class Ending:
    """An operation that deletes a deployment: its ids, its key, the digest of its token."""

    deployment_id: DeploymentId
    operation_id: OperationId
    key: SealedKey
    token_digest: bytes


@dataclass(frozen=True, slots=True)
class Left:
    """What a deletion still waits for."""

    # None: of the tenant as a whole.
    deployment_id: DeploymentId | None
    # None: nothing in particular.
    kind: ResourceKind | None
    state: OperationState
    step: Step
    retries: int
    message: str


async def end_running(connection: Connection, deployment_id: DeploymentId, message: str) -> None:
    """Ends whatever else is being done with the deployment, and erases its key."""
    await connection.execute(
        "UPDATE operations SET state = 'failed', message = $2, ended_at = now(), sealed_key = NULL"
        " WHERE deployment_id = $1 AND state = 'running' AND kind <> 'delete'",
        deployment_id,
        message,
    )


async def end_running_of_tenant(connection: Connection, tenant: TenantId, message: str) -> None:
    """Ends whatever else is being done with deployments of the tenant, as `end_running`."""
    await connection.execute(
        "UPDATE operations SET state = 'failed', message = $2, ended_at = now(), sealed_key = NULL"
        " WHERE tenant_id = $1 AND state = 'running' AND kind <> 'delete'",
        tenant,
        message,
    )


async def lock_children(connection: Connection, tenant: TenantId) -> Sequence[Child]:
    """Returns the tenant's deployments that are not deleted, and holds them until the commit."""
    # Not FOR UPDATE: who inserts a row that names a deployment may hold the tenant's lock already.
    rows = await connection.fetch(
        "SELECT deployment_id, (SELECT operation_id FROM operations"
        "  WHERE operations.deployment_id = deployments.deployment_id AND kind = 'delete')"
        " FROM deployments WHERE tenant_id = $1 AND state <> 'deleted'"
        " ORDER BY deployment_id FOR NO KEY UPDATE",
        tenant,
    )
    return [Child(row["deployment_id"], row["operation_id"]) for row in rows]


async def delete_children(
    connection: Connection, tenant: TenantId, endings: Sequence[Ending]
) -> None:
    """Writes that each deployment is being deleted; operations that had failed begin anew."""
    await connection.execute(
        "UPDATE deployments SET state = 'deleting' WHERE tenant_id = $1 AND state <> 'deleted'",
        tenant,
    )
    await connection.execute(
        "INSERT INTO operations (operation_id, tenant_id, deployment_id, kind, state, step,"
        " sealed_key)"
        " SELECT operation_id, $1, deployment_id, 'delete', 'running', $5, sealed_key"
        " FROM unnest($2::text[], $3::text[], $4::bytea[])"
        "  AS ending (operation_id, deployment_id, sealed_key)"
        " ON CONFLICT (operation_id) DO NOTHING",
        tenant,
        [each.operation_id for each in endings],
        [each.deployment_id for each in endings],
        [each.key.sealed for each in endings],
        Step.RETIRING,
    )
    await give_keys(connection, endings)
    await connection.execute(
        "INSERT INTO certificates (operation_id, tenant_id, deployment_id, token_digest)"
        " SELECT operation_id, $1, deployment_id, token_digest"
        " FROM unnest($2::text[], $3::text[], $4::bytea[])"
        "  AS ending (operation_id, deployment_id, token_digest)"
        " ON CONFLICT (operation_id) DO NOTHING",
        tenant,
        [each.operation_id for each in endings],
        [each.deployment_id for each in endings],
        [each.token_digest for each in endings],
    )


async def give_keys(connection: Connection, endings: Sequence[Ending]) -> None:
    """Gives operations that have not succeeded another key, and lets them try it at once."""
    await connection.execute(
        "UPDATE operations SET sealed_key = ending.sealed_key, key_renew_at = ending.renew_at,"
        " ended_at = NULL, state = 'running',"
        " retries = CASE state WHEN 'failed' THEN 0 ELSE retries END,"
        " next_try_at = now()"
        " FROM unnest($1::text[], $2::bytea[], $3::timestamptz[])"
        "  AS ending (operation_id, sealed_key, renew_at)"
        " WHERE operations.operation_id = ending.operation_id AND state <> 'succeeded'",
        [each.operation_id for each in endings],
        [each.key.sealed for each in endings],
        [each.key.renew_time for each in endings],
    )


async def revoke_access(
    connection: Connection, tenant: TenantId, kinds: Sequence[ResourceKind]
) -> None:
    """Writes that nobody gets at these resources of the tenant any more; the first time counts."""
    await connection.execute(
        "UPDATE resources SET access_revoked_at = coalesce(access_revoked_at, now()), reason = '',"
        " since = CASE WHEN state IN ('going', 'gone') THEN since ELSE now() END,"
        " state = CASE state WHEN 'gone' THEN state ELSE 'going' END"
        " WHERE tenant_id = $1 AND kind = ANY($2) AND EXISTS (SELECT FROM deployments"
        "  WHERE deployments.deployment_id = resources.deployment_id AND state = 'deleting')",
        tenant,
        list(kinds),
    )


async def children(
    connection: Connection, tenant: TenantId, *, failed: bool = False
) -> Sequence[Child]:
    """Returns the deployments that are not deleted yet; or those whose operations have failed."""
    rows = await connection.fetch(
        "SELECT deployment_id, operation_id FROM operations JOIN deployments USING (deployment_id)"
        " WHERE operations.tenant_id = $1 AND kind = 'delete' AND deployments.state <> 'deleted'"
        " AND (operations.state = 'failed' OR NOT $2) ORDER BY deployment_id",
        tenant,
        failed,
    )
    return [Child(row["deployment_id"], row["operation_id"]) for row in rows]


async def resources_of_tenant(
    connection: Connection, tenant: TenantId, since: datetime
) -> tuple[Sequence[Resource], int]:
    """Returns the resources of deployments deleted `since` then, and how many others there were."""
    rows = await connection.fetch(
        f"SELECT {RESOURCE_COLUMNS} FROM resources WHERE deployment_id IN ("  # noqa: S608 columns
        "  SELECT deployment_id FROM deployments WHERE tenant_id = $1 AND deleted_at >= $2)"
        " ORDER BY deployment_id, kind",
        tenant,
        since,
    )
    before = await connection.fetchval(
        "SELECT count(*) FROM deployments WHERE tenant_id = $1 AND deleted_at < $2", tenant, since
    )
    return [resource_of_row(row) for row in rows], int(before)


async def erase_own(connection: Connection, tenant: TenantId) -> Mapping[str, int]:
    """Erases every row of the tenant but its tombstone; returns how many, by table.

    The entries of the queue go as well: they name deployments.
    """
    await connection.execute(
        "DELETE FROM pgqueuer WHERE status = 'queued' AND payload IN ("
        " SELECT convert_to(deployment_id, 'UTF8') FROM deployments WHERE tenant_id = $1)",
        tenant,
    )
    return {table: await _erased(connection, table, tenant) for table in _OWN_TABLES}


async def count_own(connection: Connection, tenant: TenantId) -> int:
    """Returns how many rows there are of the tenant but its tombstone."""
    counts = " + ".join(
        f"(SELECT count(*) FROM {table} WHERE tenant_id = $1)"  # noqa: S608 names of ours
        for table in _OWN_TABLES
    )
    return int(await connection.fetchval(f"SELECT {counts}", tenant))


async def _erased(connection: Connection, table: str, tenant: TenantId) -> int:
    status = await connection.execute(f"DELETE FROM {table} WHERE tenant_id = $1", tenant)  # noqa: S608 a name of ours
    return _count(status)


def _count(status: str) -> int:
    """Returns how many rows a statement was about, as its command tag says."""
    return int(status.rpartition(" ")[2])


async def mark_verified(
    connection: Connection, deployment_id: DeploymentId, kinds: Sequence[ResourceKind]
) -> None:
    """Writes that nothing is left of these resources, which was looked after."""
    await connection.execute(
        "UPDATE resources SET verified_gone_at = coalesce(verified_gone_at, now()), reason = '',"
        " since = CASE state WHEN 'gone' THEN since ELSE now() END, state = 'gone'"
        " WHERE deployment_id = $1 AND kind = ANY($2) AND destroyed_at IS NOT NULL",
        deployment_id,
        list(kinds),
    )


async def mark_left(
    connection: Connection, deployment_id: DeploymentId, reasons: Mapping[ResourceKind, str]
) -> None:
    """Writes why these resources are still there; what was said of their end does not hold."""
    await connection.execute(
        "UPDATE resources SET destroyed_at = NULL, verified_gone_at = NULL, reason = left_.reason,"
        " since = CASE state WHEN 'going' THEN since ELSE now() END, state = 'going'"
        " FROM unnest($2::text[], $3::text[]) AS left_ (kind, reason)"
        " WHERE deployment_id = $1 AND resources.kind = left_.kind",
        deployment_id,
        list(reasons.keys()),
        list(reasons.values()),
    )


async def erase_secrets(connection: Connection, deployment_id: DeploymentId) -> Mapping[str, int]:
    """Erases the deployment's secrets and its first administrator; returns how many there were."""
    secrets = await connection.execute(
        "DELETE FROM secrets WHERE deployment_id = $1", deployment_id
    )
    administrators = await connection.execute(
        "DELETE FROM bootstrap_admins WHERE deployment_id = $1", deployment_id
    )
    return {"secrets": _count(secrets), "administrators": _count(administrators)}


async def count_secrets(connection: Connection, deployment_id: DeploymentId) -> int:
    """Returns how many rows there are of the deployment's secrets and administrator."""
    return int(
        await connection.fetchval(
            "SELECT (SELECT count(*) FROM secrets WHERE deployment_id = $1)"
            " + (SELECT count(*) FROM bootstrap_admins WHERE deployment_id = $1)",
            deployment_id,
        )
    )


async def left_of_deployment(connection: Connection, operation_id: OperationId) -> Sequence[Left]:
    """Returns what the deletion of a deployment waits for."""
    rows = await connection.fetch(
        f"{_LEFT} WHERE operations.operation_id = $1 AND operations.state <> 'succeeded'"
        " ORDER BY kind",
        operation_id,
    )
    return [_left(row) for row in rows]


async def left_of_tenant(connection: Connection, tenant: TenantId, most: int) -> Sequence[Left]:
    """Returns what the deletion of a tenant's deployments waits for: `most`, stuck ones first."""
    rows = await connection.fetch(
        f"{_LEFT} WHERE operations.tenant_id = $1 AND operations.kind = 'delete'"
        " AND operations.state <> 'succeeded'"
        " ORDER BY operations.retries DESC, operations.deployment_id, kind LIMIT $2",
        tenant,
        most,
    )
    return [_left(row) for row in rows]


def _left(row: asyncpg.Record) -> Left:
    return Left(
        deployment_id=row["deployment_id"],
        kind=None if row["kind"] is None else ResourceKind(row["kind"]),
        state=OperationState(row["state"]),
        step=Step(row["step"]),
        retries=row["retries"],
        message=row["message"],
    )
