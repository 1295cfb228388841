"""What was stored by an earlier version of auth, after its migrations."""

import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.auth.domain import TENANT_SCOPES
from services.shared.postgres import connect
from services.shared.schema import migrate
from services.shared.settings import PostgresSettings
from tests.databases import SERVICES, Databases

MIGRATIONS = SERVICES / "auth" / "migrations"
FORMER = ["audit:read", "db:write", "deployments:write", "keys:write", "tenants:read", "usage:read"]


@pytest.fixture
async def connection(databases: Databases) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """Yields auth's own connection to a database without any table."""
    server, name = databases.postgres, f"auth_upgrade_{secrets.token_hex(4)}"
    password_file = await server.create_service("auth")
    superuser = await server.connect()
    await superuser.execute(f'CREATE DATABASE "{name}" OWNER auth')
    await superuser.close()
    opened = await connect(
        PostgresSettings(
            postgres_host=server.host,
            postgres_port=server.port,
            postgres_database=name,
            postgres_user="auth",
            postgres_password_file=password_file,
        )
    )
    yield opened
    await opened.close()


async def test_keys_with_every_scope_of_before_have_every_scope_of_now(
    connection: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    await migrate(connection, until(1, tmp_path))
    await insert_keys(connection, "tenant", FORMER, ["keys:write", "tenants:read"])
    await migrate(connection, MIGRATIONS)
    every, narrow = await scopes(connection)
    assert set(every) == TENANT_SCOPES
    assert narrow == ["keys:write", "tenants:read"]


async def test_only_whole_keys_of_tenants_get_the_scopes_of_connections(
    connection: "asyncpg.Connection[asyncpg.Record]", tmp_path: Path
) -> None:
    await migrate(connection, until(3, tmp_path))
    whole = [*(scope for scope in FORMER if scope != "tenants:read"), "tenants:write"]
    await insert_keys(connection, "tenant", whole, [*whole, "db:read"], whole[1:])
    await insert_keys(connection, "deployment", ["db:write", "deployments:read", "usage:read"])
    await migrate(connection, MIGRATIONS)
    # As the request that made the key asks for them when it is repeated.
    assert await scopes(connection) == [
        sorted(TENANT_SCOPES),
        sorted({*TENANT_SCOPES, "db:read"}),
        whole[1:],
        ["db:write", "deployments:read", "usage:read"],
    ]


def until(version: int, folder: Path) -> Path:
    """Returns a folder with the migrations up to that one."""
    for file in sorted(MIGRATIONS.glob("*.sql"))[:version]:
        shutil.copy(file, folder)
    return folder


async def insert_keys(
    connection: "asyncpg.Connection[asyncpg.Record]", kind: str, *scopes: list[str]
) -> None:
    """Writes a key for each list of scopes, as `auth_service`."""
    await connection.execute("SET ROLE auth_service")
    await connection.execute(
        "INSERT INTO tenants (tenant_id, name, plan, created_by, request_id)"
        " VALUES ('ten_1', 'Acme', 'free', 'key', 'r') ON CONFLICT DO NOTHING"
    )
    await connection.execute("RESET ROLE")
    async with connection.transaction():
        await connection.execute(
            "SELECT set_config('role', 'auth_tenant', true),"
            " set_config('bulkhead.tenant_id', 'ten_1', true)"
        )
        await connection.execute(
            "INSERT INTO deployments (deployment_id, tenant_id) VALUES ('dep_1', 'ten_1')"
            " ON CONFLICT DO NOTHING"
        )
        await connection.executemany(
            "INSERT INTO keys (key_id, kind, tenant_id, deployment_id, digest, hint, name, scopes,"
            " issued_by, request_id) VALUES ($1, $2, 'ten_1', $3, convert_to($1, 'UTF8'), 'h', 'n',"
            " $4, 'key', $1)",
            [
                (
                    f"key_{kind == 'deployment'}_{number}",
                    kind,
                    "dep_1" if kind == "deployment" else None,
                    each,
                )
                for number, each in enumerate(scopes)
            ],
        )


async def scopes(connection: "asyncpg.Connection[asyncpg.Record]") -> list[list[str]]:
    """Returns the scopes of every key, in the order of their ids."""
    async with connection.transaction():
        await connection.execute("SET LOCAL ROLE auth_service")
        rows = await connection.fetch("SELECT scopes FROM keys ORDER BY key_id")
        return [row["scopes"] for row in rows]
