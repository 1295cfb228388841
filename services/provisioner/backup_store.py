"""The rows of backups, one function a query."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import asyncpg

from services.provisioner.domain import Backup, BackupState, BackupTarget, Deployment
from services.provisioner.store import some
from services.shared.ids import BackupId, DeploymentId
from services.shared.postgres import Connection

_BACKUP = "backup_id, tenant_id, deployment_id, target, state, size_bytes, message, created_at"


async def insert(
    connection: Connection, deployment: Deployment, backup_id: BackupId, target: BackupTarget
) -> Backup:
    """Writes a backup that is yet to be made."""
    row = await connection.fetchrow(
        "INSERT INTO backups (backup_id, tenant_id, deployment_id, target, state)"  # noqa: S608 columns
        f" VALUES ($1, $2, $3, $4, 'running') RETURNING {_BACKUP}",
        backup_id,
        deployment.tenant_id,
        deployment.deployment_id,
        target,
    )
    return _backup(some(row))


async def get(connection: Connection, backup_id: BackupId, *, lock: bool = False) -> Backup | None:
    """Returns the backup, in whatever state; with `lock`, nobody else changes it meanwhile."""
    row = await connection.fetchrow(
        f"SELECT {_BACKUP} FROM backups WHERE backup_id = $1" + (" FOR UPDATE" if lock else ""),  # noqa: S608 columns
        backup_id,
    )
    return None if row is None else _backup(row)


async def count(connection: Connection, deployment_id: DeploymentId) -> int:
    """Returns how many backups of the deployment take a place."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM backups WHERE deployment_id = $1 AND state <> 'gone'",
            deployment_id,
        )
    )


async def page(
    connection: Connection,
    deployment_id: DeploymentId,
    before: tuple[datetime, str] | None,
    most: int,
) -> list[Backup]:
    """Returns the deployment's backups that are not going, newest first."""
    time, last = before if before is not None else (None, None)
    rows = await connection.fetch(
        f"SELECT {_BACKUP} FROM backups"  # noqa: S608 columns
        " WHERE deployment_id = $1 AND state NOT IN ('going', 'gone')"
        " AND ($2::timestamptz IS NULL OR (created_at, backup_id) < ($2, $3::text))"
        " ORDER BY created_at DESC, backup_id DESC LIMIT $4",
        deployment_id,
        time,
        last,
        most,
    )
    return [_backup(row) for row in rows]


async def set_ready(connection: Connection, backup_id: BackupId, size_bytes: int) -> None:
    """Writes that the backup is where it should be."""
    await connection.execute(
        "UPDATE backups SET state = 'ready', size_bytes = $2"
        " WHERE backup_id = $1 AND state = 'running'",
        backup_id,
        size_bytes,
    )


async def set_failed(connection: Connection, backup_id: BackupId, message: str) -> None:
    """Writes that the backup will not be made, and why."""
    await connection.execute(
        "UPDATE backups SET state = 'failed', message = $2"
        " WHERE backup_id = $1 AND state = 'running'",
        backup_id,
        message,
    )


async def set_state(connection: Connection, backup_id: BackupId, state: BackupState) -> None:
    """Writes how far the backup's end is."""
    await connection.execute("UPDATE backups SET state = $2 WHERE backup_id = $1", backup_id, state)


async def fail_abandoned(connection: Connection, message: str) -> None:
    """Writes of every backup that nobody is making any more that it has failed."""
    await connection.execute(
        "UPDATE backups SET state = 'failed', message = $1 WHERE state = 'running'"
        " AND NOT EXISTS (SELECT FROM operations"
        "  WHERE operations.deployment_id = backups.deployment_id AND kind = 'back_up'"
        "  AND operations.state = 'running' AND parameters->>'backup_id' = backup_id)",
        message,
    )


async def in_state(connection: Connection, state: BackupState, most: int) -> Sequence[Backup]:
    """Returns backups in that state, the oldest first."""
    rows = await connection.fetch(
        f"SELECT {_BACKUP} FROM backups WHERE state = $1 ORDER BY created_at LIMIT $2",  # noqa: S608 columns
        state,
        most,
    )
    return [_backup(row) for row in rows]


async def remove_all(connection: Connection, deployment_id: DeploymentId) -> None:
    """Removes the rows of the deployment's backups."""
    await connection.execute("DELETE FROM backups WHERE deployment_id = $1", deployment_id)


async def known(
    connection: Connection, backup_ids: Iterable[BackupId]
) -> Mapping[BackupId, Backup]:
    """Returns those of the backups that there are, in whatever state."""
    rows = await connection.fetch(
        f"SELECT {_BACKUP} FROM backups WHERE backup_id = ANY($1)",  # noqa: S608 columns
        list(backup_ids),
    )
    return {row["backup_id"]: _backup(row) for row in rows}


async def being_made(
    connection: Connection, deployment_ids: Iterable[DeploymentId]
) -> frozenset[DeploymentId]:
    """Returns those of the deployments that are being made."""
    rows = await connection.fetch(
        "SELECT deployment_id FROM deployments WHERE deployment_id = ANY($1)"
        " AND state = 'creating'",
        list(deployment_ids),
    )
    return frozenset(row["deployment_id"] for row in rows)


def _backup(row: asyncpg.Record) -> Backup:
    return Backup(
        backup_id=row["backup_id"],
        tenant_id=row["tenant_id"],
        deployment_id=row["deployment_id"],
        target=BackupTarget(row["target"]),
        state=BackupState(row["state"]),
        size_bytes=row["size_bytes"],
        message=row["message"],
        create_time=row["created_at"],
    )
