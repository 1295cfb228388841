"""What a new database begins with: another's content, or a backup's (nothing, for most)."""

from services.provisioner import backup_store, store
from services.provisioner.backup_files import BackupFiles
from services.provisioner.domain import Backup, BackupState, Deployment, DeploymentState
from services.provisioner.drivers.protocol import (
    DamagedError,
    DatabaseDriver,
    DriverError,
    MissingError,
    UnsupportedError,
)
from services.shared.errors import FailedPreconditionError, Reason
from services.shared.ids import BackupId, DeploymentId
from services.shared.postgres import Database

_THERE = frozenset({DeploymentState.READY, DeploymentState.SUSPENDED})


class Origins:
    """Fills new databases, once: one that is there is never filled again."""

    def __init__(self, database: Database, driver: DatabaseDriver, files: BackupFiles) -> None:
        self._database = database
        self._driver = driver
        self._files = files

    async def fill(self, deployment: Deployment) -> None:
        """Returns when the deployment's database has what it comes from, if it comes from any.

        The caller holds the deployment's lock, and it is not ready yet.

        Raises:
            DriverError: it is not done; a later try may succeed.
            FailedPreconditionError: what it comes from is gone, or damaged.
        """
        source = deployment.source_deployment_id
        if source is None or await self._driver.kept(deployment.deployment_id):
            return
        if deployment.source_backup_id is None:
            await self._branch(deployment, source)
        else:
            await self._restore(deployment, source, deployment.source_backup_id)

    async def _branch(self, deployment: Deployment, source: DeploymentId) -> None:
        try:
            await self._driver.branch(source, deployment.deployment_id)
        except DriverError:
            async with self._database.tenant(deployment.tenant_id) as connection:
                found = await store.get_deployment(connection, source)
            if found is None or found.state not in _THERE:
                raise _gone("the deployment to copy is gone") from None
            raise

    async def _restore(
        self, deployment: Deployment, source: DeploymentId, backup_id: BackupId
    ) -> None:
        backup = await self._ready(deployment, backup_id)
        try:
            async with self._files.fetched(backup, deployment.deployment_id) as file:
                await self._driver.restore(file, deployment.deployment_id, source, backup_id)
        except (DamagedError, UnsupportedError) as error:
            raise _gone(str(error)) from error
        except MissingError as error:
            raise _gone("the backup is not there any more") from error
        except DriverError:
            await self._ready(deployment, backup_id)
            raise

    async def _ready(self, deployment: Deployment, backup_id: BackupId) -> Backup:
        async with self._database.tenant(deployment.tenant_id) as connection:
            backup = await backup_store.get(connection, backup_id)
        if backup is None or backup.state is not BackupState.READY:
            raise _gone("the backup to restore is gone")
        return backup


def _gone(message: str) -> FailedPreconditionError:
    return FailedPreconditionError(message, Reason.OPERATION_FAILED)
