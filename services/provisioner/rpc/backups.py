"""Copies of databases: branches, backups, and what is restored from those."""

from collections.abc import Mapping
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.backup_files import file_name, key_of
from services.provisioner.domain import (
    MOST_NAME_LENGTH,
    MOST_REQUEST_ID_LENGTH,
    Backup,
    BackupState,
    BackupTarget,
    backup_id,
)
from services.provisioner.rpc.messages import (
    bearer,
    deployment_message,
    named,
    operation_message,
    timestamp,
)
from services.provisioner.rpc.part import Part
from services.shared.errors import InvalidFieldError, NotFoundError
from services.shared.fields import text
from services.shared.ids import BackupId
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import current_principal

_LIST = "backups"
_MOST_ID_LENGTH = 64
_TARGETS: Mapping[int, BackupTarget] = {
    pb2.BACKUP_TARGET_UNSPECIFIED: BackupTarget.FILE,
    pb2.BACKUP_TARGET_FILE: BackupTarget.FILE,
    pb2.BACKUP_TARGET_BUCKET: BackupTarget.BUCKET,
}
_TARGET_VALUES: Mapping[BackupTarget, "pb2.BackupTarget.ValueType"] = {
    BackupTarget.FILE: pb2.BACKUP_TARGET_FILE,
    BackupTarget.BUCKET: pb2.BACKUP_TARGET_BUCKET,
}
_STATES: Mapping[BackupState, "pb2.BackupState.ValueType"] = {
    BackupState.RUNNING: pb2.BACKUP_STATE_RUNNING,
    BackupState.READY: pb2.BACKUP_STATE_READY,
    BackupState.FAILED: pb2.BACKUP_STATE_FAILED,
}


class BackupsRpc(Part):
    """Branches and backups."""

    async def CreateBranch(
        self, request: pb2.CreateBranchRequest, context: Any
    ) -> pb2.CreateBranchResponse:
        deployment, operation = await self.service.branching.branch(
            current_principal().tenant,
            bearer(),
            named(request.deployment_id),
            text("request_id", request.request_id, most=MOST_REQUEST_ID_LENGTH),
            text("name", request.name, most=MOST_NAME_LENGTH),
            mcp=request.mcp,
        )
        return pb2.CreateBranchResponse(
            deployment=deployment_message(deployment), operation=operation_message(operation)
        )

    async def CreateBackup(
        self, request: pb2.CreateBackupRequest, context: Any
    ) -> pb2.CreateBackupResponse:
        target = _TARGETS.get(request.target)
        if target is None:
            raise InvalidFieldError("target", "is unknown")
        backup, operation = await self.service.backups.create(
            current_principal().tenant,
            bearer(),
            named(request.deployment_id),
            text("request_id", request.request_id, most=MOST_REQUEST_ID_LENGTH),
            target,
        )
        return pb2.CreateBackupResponse(
            backup=_message(backup), operation=operation_message(operation)
        )

    async def ListBackups(
        self, request: pb2.ListBackupsRequest, context: Any
    ) -> pb2.ListBackupsResponse:
        tenant, deployment_id = current_principal().tenant, named(request.deployment_id)
        most = page_size(request.page_size)
        listed = f"{_LIST} {deployment_id}"
        before = page_position(listed, tenant, request.page_token)
        found = await self.service.backups.page(tenant, deployment_id, before, most + 1)
        positions = [(backup.create_time, backup.backup_id) for backup in found]
        return pb2.ListBackupsResponse(
            backups=[_message(backup) for backup in found[:most]],
            next_page_token=next_page_token(listed, tenant, positions, most),
        )

    async def DeleteBackup(
        self, request: pb2.DeleteBackupRequest, context: Any
    ) -> pb2.DeleteBackupResponse:
        await self.service.backups.delete(
            current_principal().tenant, _named_backup(request.backup_id)
        )
        return pb2.DeleteBackupResponse()

    async def RestoreBackup(
        self, request: pb2.RestoreBackupRequest, context: Any
    ) -> pb2.RestoreBackupResponse:
        deployment, operation = await self.service.branching.restore(
            current_principal().tenant,
            bearer(),
            _named_backup(request.backup_id),
            text("request_id", request.request_id, most=MOST_REQUEST_ID_LENGTH),
            text("name", request.name, most=MOST_NAME_LENGTH),
            mcp=request.mcp,
        )
        return pb2.RestoreBackupResponse(
            deployment=deployment_message(deployment), operation=operation_message(operation)
        )


def _named_backup(value: str) -> BackupId:
    found = backup_id(text("backup_id", value, most=_MOST_ID_LENGTH))
    if found is None:
        raise NotFoundError("backup")
    return found


def _message(backup: Backup) -> pb2.Backup:
    in_bucket = backup.target is BackupTarget.BUCKET
    return pb2.Backup(
        backup_id=backup.backup_id,
        deployment_id=backup.deployment_id,
        target=_TARGET_VALUES[backup.target],
        state=_STATES[backup.state],
        size_bytes=backup.size_bytes,
        create_time=timestamp(backup.create_time),
        location=key_of(backup.backup_id) if in_bucket else file_name(backup),
        message=backup.message,
    )
