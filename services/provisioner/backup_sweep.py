"""What is left of backups that nobody makes, keeps or restores any more."""

from collections.abc import Container, Mapping

import structlog

from services.provisioner import backup_store
from services.provisioner.backup_files import BackupFiles, Found
from services.provisioner.backups import Backups
from services.provisioner.domain import Backup, BackupState, BackupTarget
from services.shared.ids import BackupId, DeploymentId
from services.shared.postgres import Database

_ABANDONED = "the backup was given up"
_MOST_AT_ONCE = 100


class BackupSweep:
    """Ends what was begun to be deleted, and removes files that no row speaks of."""

    def __init__(
        self, database: Database, backups: Backups, files: BackupFiles, *, removes: bool = True
    ) -> None:
        self._database = database
        self._backups = backups
        self._files = files
        self._removes = removes

    async def tidy_backups(self) -> None:
        """Does all of it once.

        Raises:
            DriverError: something is left; the next sweep tries again.
        """
        async with self._database.service() as connection:
            await backup_store.fail_abandoned(connection, _ABANDONED)
            going = await backup_store.in_state(connection, BackupState.GOING, _MOST_AT_ONCE)
        await self._remove_unknown()
        for backup in going:
            await self._backups.remove(backup)

    async def _remove_unknown(self) -> None:
        """The rows are read after the files were found: a row is always there before its file.

        Where nothing is to be removed they are counted alone.
        """
        found = await self._files.found()
        async with self._database.service() as connection:
            backups = await backup_store.known(
                connection, {one.backup_id for one in found if one.backup_id}
            )
            making = await backup_store.being_made(
                connection, {one.deployment_id for one in found if not one.backup_id}
            )
        unwanted = [one for one in found if not _is_wanted(one, backups, making)]
        if self._removes:
            await self._files.unlink(unwanted)
        elif unwanted:
            structlog.get_logger().warning("unwanted backups left", files=len(unwanted))


def _is_wanted(
    one: Found, backups: Mapping[BackupId, Backup], making: Container[DeploymentId]
) -> bool:
    if one.backup_id is None:
        return one.deployment_id in making
    backup = backups.get(one.backup_id)
    if backup is None or not one.whole:
        return backup is not None and backup.state is BackupState.RUNNING
    in_file = backup.target is BackupTarget.FILE
    return backup.state is BackupState.RUNNING or (in_file and backup.state is BackupState.READY)
