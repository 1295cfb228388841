"""The mesh's own Postgres server: one database and one login role per service (P-35).

The servers of deployments are others: the provisioner makes those.
"""

import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_bytes

import asyncpg

from deploy.local.files import ensure_private, new_secret, private_folder
from deploy.local.ports import LOOPBACK
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.postgres_process import Blueprint
from services.provisioner.drivers.scram import verifier

SUPERUSER = "postgres"
DIRECTORY_NAME = "mesh"
_SECRETS = "postgres"
_SALT_BYTES = 16
SETTINGS: Mapping[str, str] = {
    "max_connections": "200",
    "shared_buffers": "48MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "password_encryption": "scram-sha-256",
    # What a statement holds is nobody's business but its caller's.
    "log_statement": "none",
    "log_min_error_statement": "panic",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}
# Passwords only, over the loopback interface only.
_ACCESS = f"host all all {LOOPBACK}/32 scram-sha-256\n"
# Each service is let into its own database by name; PUBLIC is let into none.
_CLOSE_TO_PUBLIC = (
    "REVOKE ALL ON DATABASE postgres FROM PUBLIC; REVOKE ALL ON DATABASE template1 FROM PUBLIC"
)


@dataclass(frozen=True, slots=True)
class MeshPostgres:
    """A running server, and where the passwords are."""

    host: str
    port: int
    directory: Path
    superuser: str
    superuser_password_file: Path
    home: Path

    async def create_service(self, service: str) -> Path:
        """Returns the file with the password of `service`, which can log in to its database.

        Idempotent. Makes the database and the login role `<service>`, and the roles
        `<service>_tenant` and `<service>_service` that it steps into.
        """
        file = password_file(self.home, service)
        password = ensure_private(file, new_secret)
        connection = await self.connect()
        try:
            await _ensure_roles(connection, service, password)
            await _ensure_database(connection, service)
        finally:
            await connection.close()
        return file

    async def connect(self, database: str = SUPERUSER) -> "asyncpg.Connection[asyncpg.Record]":
        """Returns a connection as the superuser; the caller closes it."""
        return await asyncpg.connect(
            host=self.host,
            port=self.port,
            user=self.superuser,
            password=self.superuser_password_file.read_text(),
            database=database,
        )


async def start(home: Path, port: int, settings: Mapping[str, str] | None = None) -> MeshPostgres:
    """Returns the server of `home` once it accepts connections; made the first time.

    A server that still runs is adopted with the port it has.

    Args:
        home: a state folder; passwords go to `home/postgres`.
        port: where a server that has to be started listens.
        settings: run-time parameters beside `SETTINGS`.

    Raises:
        ServerError: it could not be made or started.
    """
    private_folder(home / _SECRETS)
    superuser_file = password_file(home, SUPERUSER)
    blueprint = Blueprint(
        superuser=SUPERUSER,
        password=ensure_private(superuser_file, new_secret),
        access=_ACCESS,
        scripts=((SUPERUSER, _CLOSE_TO_PUBLIC),),
    )
    directory = server_directory(home)
    if not directory.exists():
        template = await postgres_process.ensure_template(directory.parent, blueprint)
        template.rename(directory)
    server = await postgres_process.start(directory, port, {**SETTINGS, **(settings or {})})
    return MeshPostgres(LOOPBACK, server.port, directory, SUPERUSER, superuser_file, home)


def server_directory(home: Path) -> Path:
    """Returns where the server of the state folder `home` keeps its data."""
    return postgres_process.reachable_home(home) / DIRECTORY_NAME


def password_file(home: Path, role: str) -> Path:
    """Returns the file with the password of a login role."""
    return home / _SECRETS / f"{role}.password"


@asynccontextmanager
async def mesh_postgres(
    home: Path, *, port: int | None = None, settings: Mapping[str, str] | None = None
) -> AsyncIterator[MeshPostgres]:
    """Runs a server for the length of the context, and removes it and its data after.

    Raises:
        ServerError: it could not be made or started.
    """
    servers = postgres_process.reachable_home(home)
    try:
        yield await start(home, port or postgres_process.free_port(), settings)
    finally:
        await postgres_process.destroy(servers / DIRECTORY_NAME)
        shutil.rmtree(servers)


async def _ensure_roles(
    connection: "asyncpg.Connection[asyncpg.Record]", service: str, password: str
) -> None:
    login = (
        "LOGIN NOINHERIT NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
        f"PASSWORD '{verifier(password, token_bytes(_SALT_BYTES))}'"
    )
    await _ensure_role(connection, service, login)
    await connection.execute(f"ALTER ROLE {_quoted(service)} {login}")
    for role in (f"{service}_tenant", f"{service}_service"):
        await _ensure_role(connection, role, "NOLOGIN NOINHERIT")
        await connection.execute(
            f"GRANT {_quoted(role)} TO {_quoted(service)} WITH INHERIT FALSE, SET TRUE"
        )


async def _ensure_role(
    connection: "asyncpg.Connection[asyncpg.Record]", role: str, attributes: str
) -> None:
    if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
        await connection.execute(f"CREATE ROLE {_quoted(role)} {attributes}")


async def _ensure_database(connection: "asyncpg.Connection[asyncpg.Record]", service: str) -> None:
    name = _quoted(service)
    if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", service):
        await connection.execute(f"CREATE DATABASE {name} OWNER {name}")
    await connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
