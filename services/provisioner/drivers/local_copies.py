"""Copies of local databases: as a database of another deployment, and as a file.

What runs is copied as Postgres's documentation says in "Making a Base Backup Using the Low Level
API": the files in any order while they are written, and all the WAL from before to after, from
which the copy makes itself whole. That needs no replication protocol, which stays shut (P-02).
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import asyncpg

from services.provisioner.drivers import cluster_archive, local_database
from services.provisioner.drivers.cluster_archive import ArchiveDamagedError, ArchiveSink
from services.provisioner.drivers.cluster_files import (
    FolderSink,
    Sink,
    copy_cluster,
    copy_text,
    copy_wal,
)
from services.provisioner.drivers.folder_lock import Held, locked
from services.provisioner.drivers.postgres_process import (
    HOST,
    RunningServer,
    ServerError,
    end_remains,
    running,
)
from services.provisioner.drivers.postgres_template import partial_of, run_single_user, to_its_end
from services.provisioner.drivers.protocol import DamagedError, DriverError
from services.provisioner.drivers.scram import verifier
from services.provisioner.drivers.server_command import run
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import BackupId, DeploymentId

_CONNECT_SECONDS = 5.0
# A checkpoint comes first: it writes what changed, and waits for the disk.
_COMMAND_SECONDS = 120.0
# More than are ever made at once: how many that are is for whoever asks for them to say.
_MOST_THREADS = 64
# The names of the segments of WAL from one place in it to another.
_SEGMENTS = """\
SELECT DISTINCT pg_walfile_name(least($1::pg_lsn + number * size, $2::pg_lsn)) AS name
FROM (SELECT setting::bigint AS size FROM pg_settings WHERE name = 'wal_segment_size') AS segment,
    generate_series(0, ceil(($2::pg_lsn - $1::pg_lsn) / size)::bigint + 1) AS number
ORDER BY 1
"""


class LocalCopies:
    """Copies the databases of one home. See `protocol.DatabaseDriver` for what is promised."""

    def __init__(self, home: Path, secret: MasterSecret) -> None:
        self._home = home
        self._secret = secret
        # Calls wait for short work in threads; none of theirs is taken by copies, which are long.
        self._threads = ThreadPoolExecutor(_MOST_THREADS, "copy")

    async def branch(self, source: DeploymentId, target: DeploymentId) -> None:
        """Makes the target's database a copy of the source's; see the protocol."""
        await self._make(target, partial(self._copy, source))

    async def back_up(self, deployment: DeploymentId, file: Path, backup: BackupId) -> int:
        """Copies the database into `file` and returns its size; see the protocol."""
        with _driver_errors("the backup cannot be made"):
            size = await to_its_end(partial(_size, file))
            return await self._pack(deployment, file, backup) if size is None else size

    async def restore(
        self, file: Path, target: DeploymentId, source: DeploymentId, backup: BackupId
    ) -> None:
        """Makes the target's database what a backup of the source holds; see the protocol."""
        key_of = self._key_of(source, backup)

        async def unpack(sink: Sink) -> None:
            await to_its_end(partial(cluster_archive.unpack, file, key_of, sink), self._threads)

        await self._make(target, unpack)

    async def _pack(self, deployment: DeploymentId, file: Path, backup: BackupId) -> int:
        sink = await to_its_end(partial(ArchiveSink, file, self._key_of(deployment, backup)))
        try:
            await self._copy(deployment, sink)
            return await to_its_end(sink.keep, self._threads)
        finally:
            await to_its_end(sink.discard)

    async def _make(self, target: DeploymentId, fill: Callable[[Sink], Awaitable[None]]) -> None:
        """Makes the target's directory, whole or not at all; does nothing if it is there."""
        directory = self._home / target
        with _driver_errors("the copy cannot be made"):
            async with locked(directory) as lock:
                if await to_its_end(directory.exists):
                    return
                async with _half(directory, lock) as half:
                    sink = await to_its_end(partial(FolderSink, half))
                    await fill(sink)
                    copy_text(sink, "pg_hba.conf", local_database.ACCESS)
                    sink.hand_over()
                    await to_its_end(partial(self._disown, half, target, lock), self._threads)
                    _publish(half, directory)

    async def _copy(self, source: DeploymentId, sink: Sink) -> None:
        directory = self._home / source
        server = running(directory)
        if server is None:
            async with _unlocked_if_missing(directory):
                server = running(directory)
                if server is None:
                    await end_remains(directory)
                    await to_its_end(
                        partial(copy_cluster, directory, sink, live=False), self._threads
                    )
                    return
        await self._copy_live(source, server, sink)

    async def _copy_live(self, source: DeploymentId, server: RunningServer, sink: Sink) -> None:
        """Copies what runs; it may stop or go meanwhile, and then the copy fails."""
        directory = self._home / source
        async with self._session(source, server) as session:
            # Temporary: it keeps the WAL as long as this session lasts, however that ends.
            slot = f"copy_{secrets.token_hex(8)}"
            await session.execute(
                "SELECT pg_create_physical_replication_slot($1, true, true)", slot
            )
            started = await session.fetchval("SELECT pg_backup_start($1, true)", slot)
            await to_its_end(partial(copy_cluster, directory, sink, live=True), self._threads)
            stopped = await session.fetchrow("SELECT lsn, labelfile FROM pg_backup_stop(false)")
            if stopped is None:
                raise ServerError("the copy was not ended")
            rows = await session.fetch(_SEGMENTS, started, stopped["lsn"])
            await to_its_end(
                partial(copy_wal, directory, sink, [row["name"] for row in rows]), self._threads
            )
        copy_text(sink, "backup_label", stopped["labelfile"])

    @contextlib.asynccontextmanager
    async def _session(
        self, source: DeploymentId, server: RunningServer
    ) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
        session = await asyncpg.connect(
            host=HOST,
            port=server.port,
            user=local_database.SUPERUSER,
            database=local_database.MAINTENANCE,
            password=self._superuser_password(source),
            ssl=False,
            timeout=_CONNECT_SECONDS,
            command_timeout=_COMMAND_SECONDS,
            server_settings={"statement_timeout": "0"},
        )
        try:
            yield session
        finally:
            session.terminate()

    def _disown(self, half: Path, target: DeploymentId, lock: Held) -> None:
        """Makes the copy whole, and no password of its source's one of its own.

        Postgres does it in single-user mode, which listens to nobody, and before the directory has
        the name by which servers are started: whoever is killed meanwhile leaves nothing that runs.
        """
        superuser = local_database.SUPERUSER
        salt = self._secret.salt(target, superuser)
        own = verifier(self._superuser_password(target), salt)
        script = f"SET bulkhead.verifier = '{own}';\n\n{local_database.copied()}"
        run_single_user(half, local_database.MAINTENANCE, script, lock, durable=True)
        # What was copied is on the disk before anybody relies on it.
        run(("sync", "-f", str(half)), lock, as_server=False)

    def _superuser_password(self, deployment: DeploymentId) -> str:
        return self._secret.password(deployment, local_database.SUPERUSER)

    def _key_of(self, deployment: DeploymentId, backup: BackupId) -> Callable[[bytes], bytes]:
        return lambda salt: self._secret.key("backup", deployment, backup, salt.hex())


@contextlib.asynccontextmanager
async def _half(directory: Path, lock: Held) -> AsyncIterator[Path]:
    """Yields where the directory is made; what failed leaves nothing."""
    half = partial_of(directory)
    remove = partial(shutil.rmtree, half, ignore_errors=True)
    await to_its_end(remove)
    try:
        yield half
    except BaseException:
        await to_its_end(remove)
        lock.file.unlink(missing_ok=True)
        raise


@contextlib.asynccontextmanager
async def _unlocked_if_missing(directory: Path) -> AsyncIterator[None]:
    """Holds the lock of a directory, and leaves none behind of one that is not there."""
    async with locked(directory) as lock:
        if not (await to_its_end(directory.exists)):
            lock.file.unlink(missing_ok=True)
            raise ServerError("there is no database to copy")
        yield


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None


def _publish(half: Path, directory: Path) -> None:
    half.rename(directory)
    folder = os.open(directory.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _driver_errors(message: str) -> Iterator[None]:
    try:
        yield
    except ArchiveDamagedError as error:
        raise DamagedError(str(error)) from error
    except (
        ServerError,
        OSError,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        TimeoutError,
    ) as error:
        raise DriverError(message) from error
