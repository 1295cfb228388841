"""Backing a database up, and the end of all backups of a deployment."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.provisioner import backup_store
from services.provisioner.backup_files import BackupFiles, Found
from services.provisioner.domain import (
    Backup,
    BackupState,
    Operation,
    ResourceKind,
    Step,
    backup_id,
)
from services.provisioner.drivers.protocol import DatabaseDriver
from services.provisioner.work import Action, SupersededError, Work, rest
from services.shared.postgres import Database

# The operation's parameter that says which backup it makes.
BACKUP_ID: Final = "backup_id"


class BackingUp:
    """The plan of `OperationKind.BACK_UP`: copied first, and then kept where it was asked for."""

    def __init__(self, database: Database, driver: DatabaseDriver, files: BackupFiles) -> None:
        self._database = database
        self._driver = driver
        self._files = files

    def steps(self, operation: Operation) -> Sequence[tuple[Step, Action]]:
        """Returns what is still to be done; see `work.Plan`."""
        return rest(((Step.COPYING, self._copy), (Step.KEEPING, self._keep)), operation.step)

    async def give_up(self, work: Work) -> None:
        """Leaves nothing of the backup but a row that says so."""
        backup = await self._backup(work)
        await self._files.remove(backup)
        async with self._database.tenant(backup.tenant_id) as connection:
            await backup_store.set_failed(
                connection, backup.backup_id, "the backup could not be made"
            )

    async def _copy(self, work: Work) -> None:
        """Copies the database into a file, unless that is there."""
        backup = await self._backup(work)
        file = self._files.path(backup)
        await self._driver.back_up(backup.deployment_id, file, backup.backup_id)

    async def _keep(self, work: Work) -> None:
        """Moves the file to where it was asked for; the backup is ready then, and not before."""
        backup = await self._backup(work)
        if backup.state is BackupState.RUNNING:
            size = await self._files.keep(backup)
            async with self._database.tenant(backup.tenant_id) as connection:
                await backup_store.set_ready(connection, backup.backup_id, size)
        await self._files.tidy(backup)

    async def _backup(self, work: Work) -> Backup:
        made = backup_id(work.operation.parameters[BACKUP_ID])
        if made is not None:
            async with self._database.tenant(work.deployment.tenant_id) as connection:
                backup = await backup_store.get(connection, made)
            if backup is not None and backup.state in (BackupState.RUNNING, BackupState.READY):
                return backup
        raise SupersededError


class BackupsEnding:
    """The backups of a deployment: no file, no object and no row is left. See `Ending`."""

    kind = ResourceKind.BACKUPS

    def __init__(self, database: Database, files: BackupFiles) -> None:
        self._database = database
        self._files = files

    async def close(self, work: Work) -> bool:  # noqa: ARG002 the same for each
        """Does nothing: keys of the tenant open them, and none of a deployment that is going."""
        return True

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """Removes every file, then the rows; objects went with the bucket."""
        rows = await self._rows(work)
        await self._files.unlink(await self._left(work))
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await backup_store.remove_all(connection, work.deployment.deployment_id)
        return {"backups": rows, "checked": "no file and no row is left"}

    async def left(self, work: Work) -> str:
        """Looks for files, and for rows."""
        left = len(await self._left(work)) + await self._rows(work)
        return f"{left} files or rows of backups are left" if left else ""

    async def _left(self, work: Work) -> Sequence[Found]:
        found = await self._files.found()
        return [one for one in found if one.deployment_id == work.deployment.deployment_id]

    async def _rows(self, work: Work) -> int:
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            return await backup_store.count(connection, work.deployment.deployment_id)
