"""What deployments are made of, one function a query."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import asyncpg

from services.provisioner.domain import Deployment, Resource, ResourceKind, ResourceState
from services.provisioner.store import DEPLOYMENT_COLUMNS, deployment_of_row
from services.shared.ids import DeploymentId
from services.shared.postgres import Connection

RESOURCE_COLUMNS = (
    "deployment_id, kind, state, reason, since, used_bytes, over_quota, measured_at,"
    " access_revoked_at, destroyed_at, verified_gone_at, unrecoverable_after, details"
)
_ORDER = tuple(ResourceKind)


async def insert(
    connection: Connection, deployment: Deployment, kinds: Iterable[ResourceKind]
) -> None:
    """Writes resources that are yet to be made; leaves those that are written down already."""
    await connection.execute(
        "INSERT INTO resources (deployment_id, tenant_id, kind, state)"
        " SELECT $1, $2, unnest($3::text[]), 'pending' ON CONFLICT DO NOTHING",
        deployment.deployment_id,
        deployment.tenant_id,
        list(kinds),
    )


async def set_state(
    connection: Connection,
    deployment_id: DeploymentId,
    kind: ResourceKind,
    state: ResourceState,
    reason: str = "",
) -> None:
    """Writes how the resource is, and since when if that is new.

    Does nothing to one that is gone, nor, unless it is to be gone, to one that is going. One that
    is lost neither sleeps nor is suspended.
    """
    await set_states(connection, deployment_id, (kind,), state, reason)


async def set_states(
    connection: Connection,
    deployment_id: DeploymentId,
    kinds: Iterable[ResourceKind],
    state: ResourceState,
    reason: str = "",
) -> None:
    """Does what `set_state` does, to several."""
    await connection.execute(
        "UPDATE resources SET state = $3, reason = $4,"
        " since = CASE WHEN state = $3 THEN since ELSE now() END"
        " WHERE deployment_id = $1 AND kind = ANY($2) AND (state, reason) <> ($3, $4)"
        " AND state <> 'gone' AND (state <> 'going' OR $3 IN ('going', 'gone'))"
        " AND (state <> 'lost' OR $3 NOT IN ('suspended', 'sleeping', 'pending'))",
        deployment_id,
        list(kinds),
        state,
        reason,
    )


async def list_of(
    connection: Connection, deployment_ids: Iterable[DeploymentId]
) -> dict[DeploymentId, list[Resource]]:
    """Returns what each of the deployments is made of, in the order of the kinds."""
    asked = list(deployment_ids)
    rows = await connection.fetch(
        f"SELECT {RESOURCE_COLUMNS} FROM resources WHERE deployment_id = ANY($1)",  # noqa: S608 columns
        asked,
    )
    found: dict[DeploymentId, list[Resource]] = {each: [] for each in asked}
    for resource in sorted(map(resource_of_row, rows), key=lambda each: _ORDER.index(each.kind)):
        found[resource.deployment_id].append(resource)
    return found


async def set_measured(
    connection: Connection,
    deployment_id: DeploymentId,
    used_bytes: int,
    over_quota: bool,
) -> None:
    """Writes how much the deployment's database holds now."""
    await connection.execute(
        "UPDATE resources SET used_bytes = $2, over_quota = $3, measured_at = now()"
        " WHERE deployment_id = $1 AND kind = 'database' AND state NOT IN ('going', 'gone')",
        deployment_id,
        used_bytes,
        over_quota,
    )


async def mark_access_revoked(
    connection: Connection, deployment_id: DeploymentId, kinds: Iterable[ResourceKind]
) -> None:
    """Writes that nobody gets at the resources any more; the first time counts."""
    await connection.execute(
        "UPDATE resources SET access_revoked_at = coalesce(access_revoked_at, now()),"
        " state = CASE state WHEN 'gone' THEN state ELSE 'going' END, reason = '',"
        " since = CASE WHEN state IN ('going', 'gone') THEN since ELSE now() END"
        " WHERE deployment_id = $1 AND kind = ANY($2)",
        deployment_id,
        list(kinds),
    )


async def mark_destroyed(
    connection: Connection,
    deployment_id: DeploymentId,
    kind: ResourceKind,
    details: Mapping[str, Any],
) -> None:
    """Writes that the resource was destroyed; the first time counts.

    `details` are added to those that are there, which win: a second try finds less to count.
    """
    await connection.execute(
        "UPDATE resources SET access_revoked_at = coalesce(access_revoked_at, now()),"
        " destroyed_at = coalesce(destroyed_at, now()), details = $3::jsonb || details,"
        " state = CASE state WHEN 'gone' THEN state ELSE 'going' END, reason = '',"
        " since = CASE WHEN state IN ('going', 'gone') THEN since ELSE now() END"
        " WHERE deployment_id = $1 AND kind = $2",
        deployment_id,
        kind,
        json.dumps(dict(details)),
    )


async def mark_verified(
    connection: Connection,
    deployment_id: DeploymentId,
    kind: ResourceKind,
    unrecoverable_after: datetime | None = None,
) -> None:
    """Writes that nothing is left of the resource, which was looked after; the first time counts.

    `unrecoverable_after` is set where a provider keeps what was destroyed for a while.
    """
    await connection.execute(
        "UPDATE resources SET state = 'gone', reason = '',"
        " since = CASE state WHEN 'gone' THEN since ELSE now() END,"
        " verified_gone_at = coalesce(verified_gone_at, now()),"
        " unrecoverable_after = coalesce(unrecoverable_after, $3)"
        " WHERE deployment_id = $1 AND kind = $2",
        deployment_id,
        kind,
        unrecoverable_after,
    )


async def awake_databases(
    connection: Connection, only: DeploymentId | None = None
) -> list[Deployment]:
    """Returns every deployment whose database has to be running: it is ready, and not asleep."""
    rows = await connection.fetch(
        f"SELECT {DEPLOYMENT_COLUMNS} FROM deployments"  # noqa: S608 columns
        " WHERE state = 'ready' AND database AND EXISTS (SELECT FROM resources"
        "  WHERE resources.deployment_id = deployments.deployment_id AND kind = 'database'"
        "  AND resources.state IN ('ready', 'degraded'))"
        " AND ($1::text IS NULL OR deployment_id = $1)",
        only,
    )
    return [deployment_of_row(row) for row in rows]


async def ready_buckets(
    connection: Connection, only: DeploymentId | None = None
) -> list[Deployment]:
    """Returns every deployment, not about to go, whose bucket has to be there."""
    rows = await connection.fetch(
        f"SELECT {DEPLOYMENT_COLUMNS} FROM deployments"  # noqa: S608 columns
        " WHERE state IN ('ready', 'suspended') AND bucket AND EXISTS (SELECT FROM resources"
        "  WHERE resources.deployment_id = deployments.deployment_id AND kind = 'bucket'"
        "  AND resources.state IN ('ready', 'degraded'))"
        " AND ($1::text IS NULL OR deployment_id = $1)",
        only,
    )
    return [deployment_of_row(row) for row in rows]


async def databases_to_listen_for(connection: Connection) -> list[Deployment]:
    """Returns every deployment whose database has a public port, or is to get one."""
    rows = await connection.fetch(
        f"SELECT {DEPLOYMENT_COLUMNS} FROM deployments"  # noqa: S608 columns
        " WHERE database AND state NOT IN ('failed', 'deleted')"
    )
    return [deployment_of_row(row) for row in rows]


def resource_of_row(row: asyncpg.Record) -> Resource:
    """Returns what `RESOURCE_COLUMNS` of a row say."""
    return Resource(
        deployment_id=row["deployment_id"],
        kind=ResourceKind(row["kind"]),
        state=ResourceState(row["state"]),
        reason=row["reason"],
        since=row["since"],
        used_bytes=row["used_bytes"],
        over_quota=row["over_quota"],
        measure_time=row["measured_at"],
        access_revoked_time=row["access_revoked_at"],
        destroyed_time=row["destroyed_at"],
        verified_gone_time=row["verified_gone_at"],
        unrecoverable_after=row["unrecoverable_after"],
        details=json.loads(row["details"]),
    )
