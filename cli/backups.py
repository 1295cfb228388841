"""The commands `bulkhead backup …`."""

import uuid
from collections.abc import Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated

import typer
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb

from cli.connection_refusals import checked_id
from cli.deployment_copies import Mcp, Name, show_made
from cli.deployment_table import with_operation
from cli.fitting import fitted
from cli.operations import finished
from cli.options import (
    CALL_SECONDS,
    WAIT_SECONDS,
    Api,
    Json,
    KeyFile,
    Limit,
    NoWait,
    Timeout,
    WaitSeconds,
    WorkRequestId,
)
from cli.paging import show_list
from cli.panels import TENANT
from cli.rendering import document, enum_text, fields, minute_text, time_text
from cli.session import Connection, Session, run
from cli.sizes import size_text

_CREATE_EXAMPLE = """Examples:

bulkhead backup create dep_…

bulkhead backup create dep_… --to bucket --json | jq -r .backup_id"""
_LIST_EXAMPLE = """Example: bulkhead backup list dep_…"""
_DELETE_EXAMPLE = """Example: bulkhead backup delete bak_…"""
_RESTORE_EXAMPLE = """Example: bulkhead backup restore bak_… notes-of-monday --mcp"""
# What refusals call what these commands take by its place.
_BY_PLACE = MappingProxyType({"deployment_id": "DEPLOYMENT", "backup_id": "ID", "target": "--to"})
_WRAPPED = MappingProxyType({"reason": 20})
_PAGE = 1_000

DeploymentId = Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Whose database, `dep_…`.")]
BackupId = Annotated[str, typer.Argument(metavar="ID", help="`bak_…`, as `backup list` shows it.")]


class Target(StrEnum):
    """Where a backup lies."""

    FILE = "file"
    BUCKET = "bucket"


def register(app: typer.Typer) -> None:
    """Adds `backup` to the command line."""
    backups = typer.Typer(
        no_args_is_help=True,
        help="Back databases up while they are in use, and restore them as new deployments.",
    )
    backups.command("create", epilog=_CREATE_EXAMPLE)(create)
    backups.command("list", epilog=_LIST_EXAMPLE)(list_all)
    backups.command("delete", epilog=_DELETE_EXAMPLE)(delete)
    backups.command("restore", epilog=_RESTORE_EXAMPLE)(restore)
    app.add_typer(backups, name="backup", rich_help_panel=TENANT)


def create(
    deployment_id: DeploymentId,
    to: Annotated[
        Target,
        typer.Option(
            "--to", help="file: in the platform's own store; bucket: in the deployment's bucket."
        ),
    ] = Target.FILE,
    no_wait: NoWait = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    request_id: WorkRequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Back up the database of a deployment as it is at one moment, and wait until that is done."""
    request = pb.CreateBackupRequest(
        request_id=request_id or str(uuid.uuid4()),
        deployment_id=checked_id(deployment_id, "dep"),
        target=pb.BackupTarget.Value(f"BACKUP_TARGET_{to.name}"),
    )

    async def command(session: Session) -> None:
        made = await session.provisioner.CreateBackup(request)
        backup, operation = made.backup, made.operation
        if not no_wait:
            operation = await finished(session, operation, wait_seconds)
            backup = await _found(session, backup)
        session.show(with_operation(document(backup), operation), _shown(backup))
        session.tell(f"To restore it: bulkhead backup restore {backup.backup_id} NAME")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def list_all(
    deployment_id: DeploymentId,
    limit: Limit = None,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """List the backups of a deployment, newest first."""
    request = pb.ListBackupsRequest(deployment_id=checked_id(deployment_id, "dep"))

    async def command(session: Session) -> None:
        async def ask(size: int, token: str) -> pb.ListBackupsResponse:
            request.page_size, request.page_token = size, token
            return await session.provisioner.ListBackups(request)

        await show_list(session, "backups", ask, limit, _listed)

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def delete(
    backup_id: BackupId,
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Delete a backup: it is gone when the command returns."""
    request = pb.DeleteBackupRequest(backup_id=checked_id(backup_id, "bak"))

    async def command(session: Session) -> None:
        await session.provisioner.DeleteBackup(request)
        session.show({"backup_id": backup_id}, f"{backup_id} is deleted")

    run(Connection(api, key_file, timeout, as_json), command, _BY_PLACE)


def restore(
    backup_id: BackupId,
    name: Name,
    mcp: Mcp = False,
    no_wait: NoWait = False,
    wait_seconds: WaitSeconds = WAIT_SECONDS,
    request_id: WorkRequestId = "",
    as_json: Json = False,
    api: Api = "",
    key_file: KeyFile = None,
    timeout: Timeout = CALL_SECONDS,
) -> None:
    """Make a new deployment with the database of a backup; the one it came from is not touched.

    The new one has the database alone, with a host and passwords of its own:
    no bucket, secrets or administrator, no keys, and nothing that was lent.
    """
    request = pb.RestoreBackupRequest(
        request_id=request_id or str(uuid.uuid4()),
        backup_id=checked_id(backup_id, "bak"),
        name=name,
        mcp=mcp,
    )

    async def command(session: Session) -> None:
        made = await session.provisioner.RestoreBackup(request)
        await show_made(session, made, None if no_wait else wait_seconds)

    run(Connection(api, key_file, timeout, as_json), command, {**_BY_PLACE, "name": "NAME"})


async def _found(session: Session, backup: pb.Backup) -> pb.Backup:
    """Returns the backup as it is now; as it was, when it is none of the newest any more."""
    request = pb.ListBackupsRequest(deployment_id=backup.deployment_id, page_size=_PAGE)
    answer = await session.provisioner.ListBackups(request)
    same = (one for one in answer.backups if one.backup_id == backup.backup_id)
    return next(same, backup)


def _shown(backup: pb.Backup) -> str:
    return fields(
        {
            "backup": backup.backup_id,
            "deployment": backup.deployment_id,
            "state": _state(backup),
            "size": size_text(backup.size_bytes) if backup.size_bytes else "",
            "in": f"{_target(backup)}: {backup.location}",
            "created": time_text(backup.create_time),
            "reason": backup.message,
        }
    )


def _listed(backups: Sequence[pb.Backup]) -> str:
    if not backups:
        return "no backups; make one: bulkhead backup create dep_…"
    columns = {
        "backup": [one.backup_id for one in backups],
        "state": [_state(one) for one in backups],
        "in": [_target(one) for one in backups],
        "size": [size_text(one.size_bytes) if one.size_bytes else "" for one in backups],
        "created": [minute_text(one.create_time) for one in backups],
        "reason": [one.message for one in backups],
    }
    return fitted(columns, _WRAPPED, ("reason", "size"))


def _state(backup: pb.Backup) -> str:
    return enum_text(pb.BackupState.Name(backup.state), "BACKUP_STATE_")


def _target(backup: pb.Backup) -> str:
    return enum_text(pb.BackupTarget.Name(backup.target), "BACKUP_TARGET_")
