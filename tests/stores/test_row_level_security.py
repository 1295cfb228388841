"""The second wall: a forgotten WHERE returns nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.shared.errors import UnavailableError
from services.shared.ids import TenantId
from services.shared.migrations import MigrationError
from services.shared.postgres import Database, connect, open_database
from tests.databases import SERVICES, Databases

WITH_DATABASE = ("auth", "ratelimit", "credentials", "provisioner", "app_proxy")


@pytest.fixture(params=WITH_DATABASE)
async def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def database(databases: Databases, service: str) -> AsyncIterator[Database]:
    settings = await databases.fresh(service)
    async with open_database(settings, service, SERVICES / service / "migrations") as opened:
        yield opened


async def tables_of_tenants(database: Database) -> list[str]:
    rows = await database.pool.fetch(
        "SELECT table_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND column_name = 'tenant_id'"
    )
    return sorted(row["table_name"] for row in rows)


@pytest.mark.promise("P-36")
async def test_every_table_with_a_tenants_rows_forces_row_level_security(
    database: Database,
) -> None:
    tables = await tables_of_tenants(database)
    assert tables
    rows = await database.pool.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relrowsecurity AND relforcerowsecurity"
    )
    assert set(tables) <= {row["relname"] for row in rows}


@pytest.mark.promise("P-36")
async def test_the_roles_of_a_service_bypass_nothing(database: Database, service: str) -> None:
    rows = await database.pool.fetch(
        "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolinherit"
        " FROM pg_roles WHERE rolname = ANY($1)",
        [service, f"{service}_tenant", f"{service}_service"],
    )
    assert len(rows) == 3
    assert not any(any(row[1:6]) for row in rows)
    # Outside its two kinds of transaction the service itself sees no tenant's row at all.
    for table in await tables_of_tenants(database):
        assert await database.pool.fetchval(f'SELECT count(*) FROM "{table}"') == 0


@pytest.mark.promise("P-36")
async def test_a_tenant_transaction_without_a_where_sees_its_own_rows_alone(
    databases: Databases,
) -> None:
    settings = await databases.fresh("auth")
    async with open_database(settings, "auth", SERVICES / "auth" / "migrations") as database:
        for tenant in ("ten_a", "ten_b"):
            async with database.service() as connection:
                await connection.execute(
                    "INSERT INTO tenants (tenant_id, name, plan, created_by, request_id)"
                    " VALUES ($1, $1, 'free', 'key', $1)",
                    tenant,
                )
        async with database.tenant(TenantId("ten_a")) as connection:
            rows = await connection.fetch("SELECT tenant_id FROM tenants")
            assert [row["tenant_id"] for row in rows] == ["ten_a"]
        async with database.service() as connection:
            assert await connection.fetchval("SELECT count(*) FROM tenants") == 2
        # The setting ends with its transaction: the next use of the connection starts blind.
        assert await database.pool.fetchval("SELECT count(*) FROM tenants") == 0


@pytest.mark.promise("P-36")
async def test_a_tenant_transaction_cannot_write_into_another_tenant(databases: Databases) -> None:
    settings = await databases.fresh("auth")
    async with open_database(settings, "auth", SERVICES / "auth" / "migrations") as database:
        async with database.service() as connection:
            await connection.execute(
                "INSERT INTO tenants (tenant_id, name, plan, created_by, request_id)"
                " VALUES ('ten_b', 'b', 'free', 'key', 'r')"
            )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.tenant(TenantId("ten_a")) as connection:
                await connection.execute(
                    "INSERT INTO deployments (deployment_id, tenant_id) VALUES ('dep_x', 'ten_b')"
                )
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.tenant(TenantId("ten_a")) as connection:
                await connection.fetch("SELECT digest FROM keys")


@pytest.mark.promise("P-35")
async def test_no_service_logs_in_to_anothers_database(databases: Databases) -> None:
    settings = {service: await databases.fresh(service) for service in WITH_DATABASE}
    for intruder in WITH_DATABASE:
        for owner in WITH_DATABASE:
            if owner == intruder:
                continue
            mixed = settings[intruder].model_copy(update={"postgres_database": owner})
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connect(mixed)


async def test_a_migration_that_was_changed_after_it_was_applied_stops_the_start(
    databases: Databases, tmp_path: Path
) -> None:
    settings = await databases.fresh("auth")
    folder = tmp_path / "migrations"
    folder.mkdir()
    first = SERVICES / "auth" / "migrations" / "0001_tenants_keys_audit.sql"
    (folder / first.name).write_text(first.read_text() + "\n-- changed")
    with pytest.raises(MigrationError, match="changed after it was applied"):
        async with open_database(settings, "auth", folder):
            pass


async def test_a_database_that_is_away_is_unavailable_not_an_internal_fault(
    databases: Databases,
) -> None:
    settings = await databases.fresh("auth")
    async with open_database(settings, "auth", SERVICES / "auth" / "migrations") as database:
        away = await databases.postgres.connect()
        try:
            await away.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1",
                settings.postgres_database,
            )
            await away.execute(
                f'ALTER DATABASE "{settings.postgres_database}" ALLOW_CONNECTIONS false'
            )
            with pytest.raises(UnavailableError):
                async with database.service() as connection:
                    await connection.fetchval("SELECT 1")
        finally:
            await away.close()
