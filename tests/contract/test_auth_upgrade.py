"""What was stored by an earlier version of auth, after its migrations."""

import secrets
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.auth.domain import TENANT_SCOPES
from services.shared.postgres import connect, migrate
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
    shutil.copy(MIGRATIONS / "0001_tenants_keys_audit.sql", tmp_path)
    await migrate(connection, tmp_path)
    await connection.execute("SET ROLE auth_service")
    await connection.execute(
        "INSERT INTO tenants (tenant_id, name, plan, created_by, request_id)"
        " VALUES ('ten_1', 'Acme', 'free', 'key', 'r')"
    )
    for number, scopes in enumerate((FORMER, ["keys:write", "tenants:read"])):
        await connection.execute(
            "INSERT INTO keys (key_id, kind, tenant_id, digest, hint, name, scopes, issued_by,"
            " request_id) VALUES ($1, 'tenant', 'ten_1', $2, 'h', 'n', $3, 'key', $1)",
            f"key_{number}",
            bytes([number]),
            scopes,
        )
    await connection.execute("RESET ROLE")
    await migrate(connection, MIGRATIONS)
    await connection.execute("SET ROLE auth_service")
    rows = await connection.fetch("SELECT scopes FROM keys ORDER BY key_id")
    assert set(rows[0]["scopes"]) == TENANT_SCOPES
    assert rows[1]["scopes"] == ["keys:write", "tenants:read"]
