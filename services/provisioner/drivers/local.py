"""The `local` database driver: a Postgres server process per deployment, on this machine (P-01)."""

import asyncio
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import asyncpg
import structlog

from services.provisioner.domain import DatabaseAddress, DatabaseRole, deployment_id
from services.provisioner.drivers import guard, local_database, postgres_process
from services.provisioner.drivers.desk import MOST_AT_ONCE
from services.provisioner.drivers.local_copies import LocalCopies
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.postgres_process import (
    HOST,
    Blueprint,
    PortTakenError,
    PostgresMissingError,
    RunningServer,
    ServerError,
)
from services.provisioner.drivers.protocol import DriverError, Login, Measured, WantedDatabase
from services.provisioner.drivers.superuser import Prepared, Superuser, prepared
from services.provisioner.drivers.verifiers import login, verifiers
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import BackupId, DeploymentId

DATABASE = local_database.DATABASE
_FAILURES = (ServerError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
_PORT_TRIES = 8
_ALSO_LEFT = r"(?:\.(?:lock|partial|doomed))?"
_LEFT_BY_A_SERVER = re.compile(rf"\.?(dep_[0-9a-z]{{26}}){_ALSO_LEFT}")
_LEFT_BY_A_SPARE = re.compile(rf"\.?(template-[0-9a-f]{{16}}\.spare){_ALSO_LEFT}")
_SPARE_RETRY_SECONDS = 10.0

_SETTINGS = {
    # Both turns of both logins, the guard's four, and three that are kept for the superuser; and
    # twice as many as may prove at once who they are, for one that is sent away stays for a moment.
    "max_connections": str(36 + 4 + 3 + 2 * MOST_AT_ONCE),
    # Whoever connects and says nothing holds a place only so long.
    "authentication_timeout": "5s",
    "shared_buffers": "16MB",
    "temp_file_limit": "256MB",
    # As much as a copy of what runs needs, and no replication protocol for anybody (P-02).
    "wal_level": "replica",
    "max_wal_senders": "0",
    "max_replication_slots": "4",
    # More is not kept for a copy, which then fails.
    "max_slot_wal_keep_size": "4GB",
    "max_wal_size": "64MB",
    "min_wal_size": "4MB",
    "max_worker_processes": "2",
    "max_parallel_workers": "0",
    "huge_pages": "off",
    "jit": "off",
    "fsync": "on",
    "password_encryption": "scram-sha-256",
    # The log holds what happens to the server, and nothing of what is asked of it.
    "log_min_messages": "fatal",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_checkpoints": "off",
}


class LocalDriver:
    """Keeps the servers of one home. See `protocol.DatabaseDriver` for what the verbs promise."""

    def __init__(
        self, home: Path, secret: MasterSecret, ports: PortRange, statement_timeout_ms: int
    ) -> None:
        self._home = home
        self._secret = secret
        self._ports = ports
        self._cap = statement_timeout_ms
        self._settings = {**_SETTINGS, "statement_timeout": str(statement_timeout_ms)}
        self._blueprint = Blueprint(
            superuser=local_database.SUPERUSER,
            password=secret.password("template"),
            access=local_database.ACCESS,
            scripts=local_database.scripts(),
        )
        self._copies = LocalCopies(home, secret)
        self._cloned = asyncio.Event()

    @property
    def backs_up(self) -> bool:
        """Backups are supported; see the protocol."""
        return True

    async def ensure(self, wanted: WantedDatabase) -> DatabaseAddress:
        """Returns where the database is; see the protocol."""
        deployment = wanted.deployment_id
        directory = self._directory(deployment)
        try:
            if postgres_process.running(directory) is None:
                await self._clone(directory)
            server = await self._start(directory, wanted.server_port)
            told = Prepared(wanted.open_generations, wanted.quota_bytes)
            await self._prepare(deployment, server, told)
            if not guard.alive(directory, server):
                password = self._secret.password(deployment, local_database.GUARD)
                await guard.start(directory, server, password, self._cap)
        except _FAILURES as error:
            raise DriverError("the database server is not ready") from error
        finally:
            # Not earlier, for both would be slower.
            self._cloned.set()
        return DatabaseAddress(HOST, server.port)

    async def exists(self, deployment: DeploymentId) -> DatabaseAddress | None:
        """Returns where the database is when nothing is missing; see the protocol."""
        directory = self._directory(deployment)
        server = postgres_process.running(directory)
        if server is None or not server.ready or prepared(directory) is None:
            return None
        return DatabaseAddress(HOST, server.port) if guard.alive(directory, server) else None

    async def sleep(self, deployment: DeploymentId) -> None:
        """Ends the server, then its guard; see the protocol."""
        directory = self._directory(deployment)
        try:
            await postgres_process.stop(directory)
            await asyncio.to_thread(guard.end, directory)
        except (ServerError, OSError) as error:
            raise DriverError("the database server does not stop") from error

    async def kept(self, deployment: DeploymentId) -> bool:
        """Whether the data are here; see the protocol."""
        return prepared(self._directory(deployment)) is not None

    async def destroy(self, deployment: DeploymentId) -> None:
        """Ends the server and removes its files; see the protocol."""
        directory = self._directory(deployment)
        try:
            await postgres_process.destroy(directory)
            # Not before: a guard that somebody was killed while starting has begun by now.
            await asyncio.to_thread(guard.end, directory)
        except (ServerError, OSError) as error:
            raise DriverError("the database server is not gone") from error

    def login(self, deployment: DeploymentId, role: DatabaseRole, generation: int) -> Login:
        """Returns who acts as `role`; nothing stores the password (P-02)."""
        return login(self._secret, deployment, role, generation)

    async def open_generation(self, deployment: DeploymentId, generation: int) -> None:
        """Lets a generation's passwords open the database; see the protocol."""
        told = prepared(self._directory(deployment))
        if told is not None and generation not in told.open_generations:
            before = tuple(one for one in told.open_generations if one == generation - 1)
            opened = (*before, generation)
            await self._tell(deployment, replace(told, open_generations=opened, whole=True))

    async def close_generation(self, deployment: DeploymentId, generation: int) -> None:
        """Ends a generation's passwords and sessions; see the protocol."""
        told = prepared(self._directory(deployment))
        if told is not None:
            left = tuple(one for one in told.open_generations if one != generation)
            await self._tell(deployment, replace(told, open_generations=left, whole=True))

    async def set_quota(self, deployment: DeploymentId, quota_bytes: int) -> None:
        """Lets the database hold so much from now on; see the protocol."""
        told = prepared(self._directory(deployment))
        if told is not None:
            await self._tell(deployment, replace(told, quota_bytes=quota_bytes, whole=True))

    async def measure(self, deployment: DeploymentId) -> Measured | None:
        """Returns how the database is; see the protocol."""
        directory = self._directory(deployment)
        server, told = postgres_process.running(directory), prepared(directory)
        if server is None or told is None:
            return None
        try:
            return await self._superuser(deployment, server, told).measure(told.quota_bytes)
        except _FAILURES as error:
            raise DriverError("the database server does not say how it is") from error

    async def branch(self, source: DeploymentId, target: DeploymentId) -> None:
        """Makes the target's database a copy of the source's; see the protocol."""
        await self._copies.branch(source, target)

    async def back_up(self, deployment: DeploymentId, file: Path, backup: BackupId) -> int:
        """Writes the database into a file; see the protocol."""
        return await self._copies.back_up(deployment, file, backup)

    async def restore(
        self, file: Path, target: DeploymentId, source: DeploymentId, backup: BackupId
    ) -> None:
        """Makes the target's database what a backup holds; see the protocol."""
        await self._copies.restore(file, target, source, backup)

    async def found(self) -> Sequence[DeploymentId]:
        """Returns every deployment that left something in the home, or a process of its guard."""
        guarded = await asyncio.to_thread(guard.guarded, self._home)
        watched = {name for name in guarded if deployment_id(name) is not None}
        return [DeploymentId(name) for name in {*await self._left(_LEFT_BY_A_SERVER), *watched}]

    async def keep_spare(self) -> None:
        """Keeps the template, and a copy of it for the next deployment, ready, for ever."""
        while True:
            self._cloned.clear()
            try:
                await self._ensure_spare()
            except (ServerError, PostgresMissingError, OSError) as error:
                structlog.get_logger().warning("no spare", error=type(error).__name__)
                await asyncio.sleep(_SPARE_RETRY_SECONDS)
            else:
                await self._cloned.wait()

    async def _ensure_spare(self) -> None:
        """Makes the spare if it was taken, and removes those of other templates."""
        template = await postgres_process.ensure_template(self._home, self._blueprint)
        spare = await postgres_process.ensure_spare(template)
        for other in await self._left(_LEFT_BY_A_SPARE):
            if other != spare.name:
                await postgres_process.destroy(self._home / other)

    async def _clone(self, directory: Path) -> None:
        template = await postgres_process.ensure_template(self._home, self._blueprint)
        await postgres_process.clone(template, directory)

    async def _left(self, kind: re.Pattern[str]) -> list[str]:
        """Returns the name of each server directory of a kind that left anything in the home."""
        names = await asyncio.to_thread(lambda: [path.name for path in self._home.iterdir()])
        matches = (kind.fullmatch(name) for name in names)
        return sorted({match[1] for match in matches if match})

    def _directory(self, deployment: DeploymentId) -> Path:
        if deployment_id(deployment) is None:
            raise ValueError("not the id of a deployment")
        return self._home / deployment

    async def _start(self, directory: Path, wanted_port: int | None) -> RunningServer:
        port = wanted_port or self._ports.pick(HOST)
        for _ in range(_PORT_TRIES):
            try:
                return await postgres_process.start(directory, port, self._settings)
            except PortTakenError:
                port = self._ports.pick(HOST)
        raise ServerError("every port that was tried is taken")

    async def _tell(self, deployment: DeploymentId, wanted: Prepared) -> None:
        server = postgres_process.running(self._directory(deployment))
        if server is None:
            return
        try:
            await self._prepare(deployment, server, wanted)
        except _FAILURES as error:
            raise DriverError("the database server did not take it") from error

    async def _prepare(
        self, deployment: DeploymentId, server: RunningServer, wanted: Prepared
    ) -> None:
        """Tells the server what it was not told yet."""
        directory = self._directory(deployment)
        told = prepared(directory)
        if told == wanted:
            return
        if told is not None:
            # What is begun must be known to whoever comes after us, if we die.
            replace(told, whole=False).write(directory)
        superuser = self._superuser(deployment, server, told)
        sure = told if told is not None and told.whole else None
        if sure is None or sure.open_generations != wanted.open_generations:
            await superuser.set_verifiers(
                verifiers(self._secret, deployment, wanted.open_generations)
            )
        if sure is None or sure.quota_bytes != wanted.quota_bytes:
            await superuser.set_quota(wanted.quota_bytes)
        wanted.write(directory)

    def _superuser(
        self, deployment: DeploymentId, server: RunningServer, told: Prepared | None
    ) -> Superuser:
        """A server that was told nothing has the template's password, or was about to lose it."""
        own = self._secret.password(deployment, local_database.SUPERUSER)
        address = DatabaseAddress(HOST, server.port)
        if told is None:
            return Superuser(address, self._secret.password("template"), own)
        return Superuser(address, own)


async def remove_home(home: Path) -> None:
    """Ends every server of `home` and removes the folder; for a state that is thrown away.

    Raises:
        ServerError: a server would not end.
    """
    for directory in await asyncio.to_thread(_server_directories, home):
        await asyncio.to_thread(guard.end, directory)
        await postgres_process.destroy(directory)
    await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)


def _server_directories(home: Path) -> list[Path]:
    return [path.parent for path in home.glob("*/PG_VERSION")]
