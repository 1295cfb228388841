"""The `local` database driver: a Postgres server process per deployment, on this machine (P-01)."""

import asyncio
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import structlog

from services.provisioner.domain import DatabaseAddress, DatabaseRole, deployment_id
from services.provisioner.drivers import guard, local_database, postgres_process
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.postgres_process import (
    HOST,
    Blueprint,
    PortTakenError,
    PostgresMissingError,
    RunningServer,
    ServerError,
)
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.drivers.scram import verifier
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId

DATABASE = local_database.DATABASE
_PREPARED_NAME = "bulkhead.prepared"
_CONNECT_SECONDS = 5.0
_PORT_TRIES = 8
_ALSO_LEFT = r"(?:\.(?:lock|partial|doomed))?"
_LEFT_BY_A_SERVER = re.compile(rf"\.?(dep_[0-9a-z]{{26}}){_ALSO_LEFT}")
_LEFT_BY_A_SPARE = re.compile(rf"\.?(template-[0-9a-f]{{16}}\.spare){_ALSO_LEFT}")
_SPARE_RETRY_SECONDS = 10.0

_SETTINGS = {
    "max_connections": "25",
    # Whoever connects and says nothing holds a place only so long.
    "authentication_timeout": "5s",
    "shared_buffers": "16MB",
    "temp_file_limit": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
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
        self._cloned = asyncio.Event()

    async def ensure(
        self, deployment: DeploymentId, generation: int, wanted_port: int | None
    ) -> DatabaseAddress:
        """Returns where the database is; see the protocol."""
        directory = self._directory(deployment)
        try:
            if postgres_process.running(directory) is None:
                await self._clone(directory)
            server = await self._start(directory, wanted_port)
            await self._prepare(deployment, directory, server, generation)
            if not guard.alive(directory, server):
                password = self._password(deployment, local_database.GUARD, generation)
                await guard.start(directory, server, password, self._cap)
        except (ServerError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise DriverError("the database server is not ready") from error
        finally:
            # Not earlier, for both would be slower.
            self._cloned.set()
        return DatabaseAddress(HOST, server.port)

    async def exists(self, deployment: DeploymentId) -> DatabaseAddress | None:
        """Returns where the database is when nothing is missing; see the protocol."""
        directory = self._directory(deployment)
        server = postgres_process.running(directory)
        if server is None or not server.ready or _prepared(directory) is None:
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
        return _prepared(self._directory(deployment)) is not None

    async def destroy(self, deployment: DeploymentId) -> None:
        """Ends the server and removes its files; see the protocol."""
        directory = self._directory(deployment)
        try:
            await asyncio.to_thread(guard.end, directory)
            await postgres_process.destroy(directory)
        except (ServerError, OSError) as error:
            raise DriverError("the database server is not gone") from error

    def password(self, deployment: DeploymentId, role: DatabaseRole, generation: int) -> str:
        """Returns the password of `role`; nothing stores it (P-02)."""
        return self._password(deployment, role, generation)

    async def found(self) -> Sequence[DeploymentId]:
        """Returns every deployment that left something in the home."""
        return [DeploymentId(name) for name in await self._left(_LEFT_BY_A_SERVER)]

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

    async def _prepare(
        self, deployment: DeploymentId, directory: Path, server: RunningServer, generation: int
    ) -> None:
        """Replaces the passwords of the template by the deployment's own, all in one statement."""
        if _prepared(directory) == generation:
            return
        roles = (*DatabaseRole, local_database.GUARD)
        passwords = {str(role): self._password(deployment, role, generation) for role in roles}
        passwords[local_database.SUPERUSER] = self._superuser_password(deployment)
        # Only verifiers are sent, so that no log and no statistics can hold a password.
        wanted = {
            role: verifier(password, self._secret.salt(deployment, role, str(generation)))
            for role, password in passwords.items()
        }
        connection = await self._connect(deployment, server)
        try:
            await connection.execute("SELECT bulkhead.set_verifiers($1)", json.dumps(wanted))
        finally:
            await connection.close(timeout=_CONNECT_SECONDS)
        partial = directory / f".{_PREPARED_NAME}"
        partial.write_text(str(generation))
        partial.rename(directory / _PREPARED_NAME)

    async def _connect(
        self, deployment: DeploymentId, server: RunningServer
    ) -> "asyncpg.Connection[asyncpg.Record]":
        """Returns the superuser's connection, by the template's password the first time."""
        refused: Exception = ServerError("the superuser is refused")
        for password in (
            self._secret.password("template"),
            self._superuser_password(deployment),
        ):
            try:
                return await asyncpg.connect(
                    host=HOST,
                    port=server.port,
                    user=local_database.SUPERUSER,
                    database=local_database.MAINTENANCE,
                    password=password,
                    ssl=False,
                    timeout=_CONNECT_SECONDS,
                    command_timeout=_CONNECT_SECONDS,
                )
            except asyncpg.InvalidPasswordError as error:
                refused = error
        raise refused

    def _password(self, deployment: DeploymentId, role: str, generation: int) -> str:
        return self._secret.password(deployment, role, str(generation))

    def _superuser_password(self, deployment: DeploymentId) -> str:
        return self._secret.password(deployment, local_database.SUPERUSER)


def _prepared(directory: Path) -> int | None:
    """Returns the generation of the passwords that the server has; None before it has its own."""
    try:
        return int((directory / _PREPARED_NAME).read_text())
    except (OSError, ValueError):
        return None


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
