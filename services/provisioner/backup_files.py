"""Where backups lie: in a folder of the provisioner's, or in their deployment's own bucket."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.provisioner.domain import Backup, BackupTarget
from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.drivers.protocol import DriverError
from services.shared.ids import BackupId, DeploymentId

# A backup, one that is being written, and one that was fetched to be restored.
_OF_A_BACKUP = re.compile(
    r"(?P<deployment>dep_[0-9a-z]{26})\.(?P<backup>bak_[0-9a-z]{26})"
    r"|\.(?P<from>dep_[0-9a-z]{26})\.(?P<half>bak_[0-9a-z]{26})\.[0-9a-f]{16}\.partial"
    r"|\.?\.(?P<wanted_by>dep_[0-9a-z]{26})\.fetched(?:\.[0-9a-f]{16})?"
)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Found:
    """A file in the folder, and whose it is."""

    file: Path
    # Whose backup it is, or whom it was fetched for.
    deployment_id: DeploymentId
    # None: of one that was fetched.
    backup_id: BackupId | None
    whole: bool


class BackupFiles:
    """Keeps backups, gives them back, and removes them. All methods raise DriverError."""

    def __init__(self, home: Path, buckets: BucketDriver | None) -> None:
        self._home = home
        self._buckets = buckets

    def path(self, backup: Backup) -> Path:
        """Returns where the backup's file is, or is to be made."""
        return self._home / file_name(backup)

    async def keep(self, backup: Backup) -> int:
        """Returns how many bytes the backup has, once it lies where it should."""
        file = self.path(backup)
        if backup.target is BackupTarget.FILE:
            return (await _done(file.stat)).st_size
        return await self._bucket().put_file(backup.deployment_id, key_of(backup.backup_id), file)

    async def tidy(self, backup: Backup) -> None:
        """Removes the file of a backup that lies in a bucket."""
        if backup.target is BackupTarget.BUCKET:
            await _done(partial(self.path(backup).unlink, missing_ok=True))

    @contextlib.asynccontextmanager
    async def fetched(self, backup: Backup, wanted_by: DeploymentId) -> AsyncIterator[Path]:
        """Yields a file that holds the backup."""
        if backup.target is BackupTarget.FILE:
            yield self.path(backup)
            return
        file = self._home / f".{wanted_by}.fetched"
        try:
            await self._bucket().get_file(backup.deployment_id, key_of(backup.backup_id), file)
            yield file
        finally:
            await _done(partial(file.unlink, missing_ok=True))

    async def remove(self, backup: Backup) -> None:
        """Returns when nothing of the backup is left."""
        found = [one for one in await self.found() if one.backup_id == backup.backup_id]
        await self.unlink(found)
        if backup.target is BackupTarget.BUCKET:
            await self._bucket().delete_object(backup.deployment_id, key_of(backup.backup_id))

    async def unlink(self, found: Sequence[Found]) -> None:
        """Removes files."""
        for one in found:
            await _done(partial(one.file.unlink, missing_ok=True))

    async def found(self) -> Sequence[Found]:
        """Returns every file in the folder that is of a backup."""
        return await _done(lambda: list(_found(self._home)))

    def _bucket(self) -> BucketDriver:
        if self._buckets is None:
            raise DriverError("no storage for buckets is set")
        return self._buckets


def file_name(backup: Backup) -> str:
    """Returns the name of the backup's file."""
    return f"{backup.deployment_id}.{backup.backup_id}"


def key_of(backup_id: BackupId) -> str:
    """Returns the key of the backup's object in its deployment's bucket."""
    return f".bulkhead/backups/{backup_id}"


def make_home(home: Path) -> Path:
    """Returns the folder for backups, made if it is missing, and nobody else's to look into."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    return home


def _found(home: Path) -> Iterator[Found]:
    for path in home.iterdir():
        match = _OF_A_BACKUP.fullmatch(path.name)
        if match is not None:
            backup = match["backup"] or match["half"]
            yield Found(
                path,
                DeploymentId(match["deployment"] or match["from"] or match["wanted_by"]),
                BackupId(backup) if backup else None,
                whole=match["backup"] is not None,
            )


async def _done(work: Callable[[], _Result]) -> _Result:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        raise DriverError("the folder of backups cannot be used") from error
