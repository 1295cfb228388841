"""Backups of deployments' databases: begun, listed, deleted."""

from datetime import datetime, timedelta

from services.provisioner import backup_store, operation_store, store
from services.provisioner.backup_files import BackupFiles
from services.provisioner.domain import (
    Backup,
    BackupState,
    BackupTarget,
    Deployment,
    Operation,
    OperationKind,
    Step,
    backup_id,
)
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.operations import Operations, check_idle
from services.provisioner.plans.backing_up import BACKUP_ID
from services.provisioner.ports import Bearer, Registry
from services.provisioner.secret_store import hold_off_deletion
from services.provisioner.waking import usable
from services.shared.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    LimitExceededError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.shared.ids import BackupId, DeploymentId, TenantId, new_backup_id
from services.shared.postgres import Connection, Database


class Backups:
    """Begins backups and ends them; what is between, the reconciler does."""

    def __init__(
        self,
        database: Database,
        operations: Operations,
        registry: Registry,
        files: BackupFiles,
        *,
        per_deployment: int,
        supported: bool,
    ) -> None:
        self._database = database
        self._operations = operations
        self._registry = registry
        self._files = files
        self._most = per_deployment
        self._supported = supported

    async def create(
        self,
        tenant: TenantId,
        caller: Bearer,
        deployment_id: DeploymentId,
        request_id: str,
        target: BackupTarget,
    ) -> tuple[Backup, Operation]:
        """Returns the backup, written down, and the operation that makes it.

        Idempotent by the request's id.

        Raises:
            NotFoundError: the tenant has no such deployment; or the backup is deleted since.
            AlreadyExistsError: the id was used before for something else.
            FailedPreconditionError: it has no database, or one of a kind that is not backed up, or
                no bucket and one is asked for; it is suspended; or something else is being done
                with it.
            LimitExceededError: it has as many backups as it may have.
            UnavailableError: it is not ready; nothing was written.
        """
        wanted = (deployment_id, request_id, target)
        async with self._database.tenant(tenant) as connection:
            # Else the same request, at once from elsewhere, could come in between the two looks.
            await store.lock_tenant(connection, tenant)
            earlier = await _earlier(connection, tenant, *wanted)
            if earlier is not None:
                return earlier
            await self._checked(connection, deployment_id, target)
        job = await self._registry.delegate(caller, f"back up {deployment_id}")
        async with self._database.tenant(tenant) as connection:
            await store.lock_tenant(connection, tenant)
            # Before any row's lock, as whoever deletes the tenant takes it.
            await hold_off_deletion(connection, tenant)
            earlier = await _earlier(connection, tenant, *wanted)
            if earlier is not None:
                return earlier
            deployment = await self._checked(connection, deployment_id, target)
            backup = await backup_store.insert(connection, deployment, new_backup_id(), target)
            operation = await self._operations.begin(
                connection,
                deployment,
                OperationKind.BACK_UP,
                Step.COPYING,
                job,
                request_id=request_id,
                parameters={BACKUP_ID: backup.backup_id},
            )
        return backup, operation

    async def page(
        self,
        tenant: TenantId,
        deployment_id: DeploymentId,
        before: tuple[datetime, str] | None,
        most: int,
    ) -> list[Backup]:
        """Returns at most `most` backups of the deployment, newest first.

        Raises:
            NotFoundError: the tenant has no such deployment.
        """
        async with self._database.tenant(tenant) as connection:
            if await store.get_deployment(connection, deployment_id) is None:
                raise NotFoundError("deployment")
            return await backup_store.page(connection, deployment_id, before, most)

    async def delete(self, tenant: TenantId, deleted: BackupId) -> None:
        """Returns when nothing of the backup is left; does nothing the second time.

        Raises:
            NotFoundError: the tenant has no such backup.
            FailedPreconditionError: it is being made.
            UnavailableError: something of it is left, which goes by itself; asking again is safe.
        """
        async with self._database.tenant(tenant) as connection:
            backup = await backup_store.get(connection, deleted, lock=True)
            if backup is None:
                raise NotFoundError("backup")
            if backup.state is BackupState.GONE:
                return
            if backup.state is BackupState.RUNNING:
                raise FailedPreconditionError("the backup is being made", Reason.OPERATION_RUNNING)
            await backup_store.set_state(connection, deleted, BackupState.GOING)
        try:
            await self.remove(backup)
        except DriverError as error:
            raise UnavailableError(
                "the backup is not gone yet", Reason.DEPENDENCY_UNAVAILABLE, timedelta(seconds=1)
            ) from error

    async def remove(self, backup: Backup) -> None:
        """Removes a backup that is going.

        Raises:
            DriverError: something of it is left.
        """
        await self._files.remove(backup)
        async with self._database.tenant(backup.tenant_id) as connection:
            await backup_store.set_state(connection, backup.backup_id, BackupState.GONE)

    async def _checked(
        self, connection: Connection, deployment_id: DeploymentId, target: BackupTarget
    ) -> Deployment:
        """Returns the deployment, whose row is locked, when it can be backed up now."""
        deployment = usable(await store.get_deployment(connection, deployment_id, lock=True))
        if not self._supported:
            raise FailedPreconditionError(
                "databases of this kind are not backed up here; branch it instead",
                Reason.RESOURCE_NOT_DECLARED,
            )
        if target is BackupTarget.BUCKET and not deployment.bucket:
            raise FailedPreconditionError(
                "the deployment has no bucket", Reason.RESOURCE_NOT_DECLARED
            )
        await check_idle(connection, deployment_id)
        if await backup_store.count(connection, deployment_id) >= self._most:
            raise LimitExceededError(
                f"at most {self._most} backups of a deployment are kept",
                Reason.RESOURCE_LIMIT,
                "backups",
            )
        return deployment


async def _earlier(
    connection: Connection,
    tenant: TenantId,
    deployment_id: DeploymentId,
    request_id: str,
    target: BackupTarget,
) -> tuple[Backup, Operation] | None:
    operation = await operation_store.of_request(
        connection, tenant, OperationKind.BACK_UP, request_id
    )
    if operation is None:
        return None
    made = backup_id(operation.parameters[BACKUP_ID])
    backup = None if made is None else await backup_store.get(connection, made)
    if operation.deployment_id != deployment_id or (backup and backup.target is not target):
        raise AlreadyExistsError(
            "the request_id was used before for another backup", Reason.REQUEST_REPLAYED
        )
    if backup is None or backup.state in (BackupState.GOING, BackupState.GONE):
        raise NotFoundError("backup")
    return backup, operation


def restorable(backup: Backup | None) -> Backup:
    """Returns a backup that can be restored.

    Raises:
        NotFoundError: there is none.
        FailedPreconditionError: it could not be made.
        UnavailableError: it is being made.
    """
    if backup is None or backup.state in (BackupState.GOING, BackupState.GONE):
        raise NotFoundError("backup")
    if backup.state is BackupState.FAILED:
        raise FailedPreconditionError("the backup could not be made", Reason.OPERATION_FAILED)
    if backup.state is BackupState.RUNNING:
        raise UnavailableError(
            "the backup is being made", Reason.DEPLOYMENT_NOT_READY, timedelta(seconds=1)
        )
    return backup
