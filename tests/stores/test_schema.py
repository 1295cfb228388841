"""The schema of a service's database, brought up to date by one release while another one runs."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from deploy.local.pki import Paths
from services.ratelimit.settings import Settings
from services.shared.migrations import MigrationError, migrations_of, read_migrations
from services.shared.postgres import Connection, connect, open_database
from services.shared.schema import migrate
from services.shared.settings import PostgresSettings
from tests.databases import Databases
from tests.processes import ServiceProcess

ADDS = "-- expand\nCREATE TABLE {0} (a text);\n"
TAKES = "-- contract: after {1:04}\nDROP TABLE {0};\n"


@pytest.fixture
async def empty(databases: Databases) -> PostgresSettings:
    """A database of ratelimit's without any table."""
    settings = await databases.fresh("ratelimit")
    superuser = await databases.postgres.connect(settings.postgres_database)
    await superuser.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    await superuser.execute("GRANT ALL ON SCHEMA public TO ratelimit")
    await superuser.close()
    return settings


def release(folder: Path, *files: str) -> Path:
    """Returns the folder of a release with these migrations, in order."""
    folder.mkdir()
    for version, text in enumerate(files, 1):
        (folder / f"{version:04}_one.sql").write_text(text)
    return folder


async def tables(settings: PostgresSettings) -> set[str]:
    connection = await connect(settings)
    rows = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    await connection.close()
    return {row["tablename"] for row in rows} - {"schema_migrations"}


async def test_what_a_running_release_needs_is_taken_away_when_it_has_ended(
    empty: PostgresSettings, tmp_path: Path
) -> None:
    first = release(tmp_path / "1", ADDS.format("a"))
    third = release(tmp_path / "3", ADDS.format("a"), ADDS.format("b"), TAKES.format("a", 2))
    async with open_database(empty, "ratelimit", first):
        with pytest.raises(MigrationError, match="ends at 0001"):
            async with open_database(empty, "ratelimit", third):
                pass
        # All or nothing: not even what only adds.
        assert await tables(empty) == {"a"}
    async with open_database(empty, "ratelimit", third):
        assert await tables(empty) == {"b"}


async def test_a_release_that_knows_of_it_runs_on_while_something_is_taken_away(
    empty: PostgresSettings, tmp_path: Path
) -> None:
    second = release(tmp_path / "2", ADDS.format("a"), ADDS.format("b"))
    third = release(tmp_path / "3", ADDS.format("a"), ADDS.format("b"), TAKES.format("a", 2))
    async with open_database(empty, "ratelimit", second) as running:
        async with open_database(empty, "ratelimit", third):
            await running.check()
        # And is started again.
        async with open_database(empty, "ratelimit", second):
            pass


async def test_a_release_that_needs_what_is_gone_does_not_start(
    empty: PostgresSettings, tmp_path: Path
) -> None:
    third = release(tmp_path / "3", ADDS.format("a"), ADDS.format("b"), TAKES.format("a", 2))
    async with open_database(empty, "ratelimit", third):
        pass
    first = release(tmp_path / "1", ADDS.format("a"))
    with pytest.raises(MigrationError, match="start a newer release"):
        async with open_database(empty, "ratelimit", first):
            pass


async def test_sessions_of_a_release_without_a_name_need_everything(
    empty: PostgresSettings, tmp_path: Path
) -> None:
    nameless = await asyncpg.connect(
        host=empty.postgres_host,
        port=empty.postgres_port,
        database=empty.postgres_database,
        user=empty.postgres_user,
        password=(empty.postgres_password_file or Path()).read_text(),
    )
    both = release(tmp_path / "1", ADDS.format("a"), TAKES.format("a", 1))
    with pytest.raises(MigrationError, match="ends at 0000"):
        async with open_database(empty, "ratelimit", both):
            pass
    await nameless.close()
    async with open_database(empty, "ratelimit", both):
        assert await tables(empty) == set()


async def test_what_an_earlier_release_wrote_down_of_its_migrations_is_understood(
    empty: PostgresSettings,
) -> None:
    migrations = read_migrations(migrations_of("ratelimit"))
    connection = await connect(empty)
    await connection.execute(
        "CREATE TABLE schema_migrations (version integer PRIMARY KEY, name text NOT NULL,"
        " checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    await connection.execute(migrations[0].sql)
    await connection.execute(
        "INSERT INTO schema_migrations VALUES (1, $1, $2)",
        migrations[0].name,
        migrations[0].checksum,
    )
    await migrate(connection, migrations_of("ratelimit"))
    assert await connection.fetchval("SELECT max(version) FROM schema_migrations") == len(
        migrations
    )
    await connection.close()


async def test_a_migration_lets_others_go_first_at_a_table_in_use(
    empty: PostgresSettings, tmp_path: Path
) -> None:
    adds_more = "-- expand\nALTER TABLE a ADD COLUMN b text;\n"
    first = release(tmp_path / "1", ADDS.format("a"))
    second = release(tmp_path / "2", ADDS.format("a"), adds_more)
    user, migrating, other = [await connect(empty) for _ in range(3)]
    await migrate(user, first)
    using = user.transaction()
    await using.start()
    await user.execute("SELECT FROM a")
    migration = asyncio.create_task(migrate(migrating, second))
    await until_waiting(other)
    # It stands behind the migration, which gives way.
    await other.execute("SELECT FROM a")
    assert not migration.done()
    await using.commit()
    await migration
    assert await other.fetch("SELECT b FROM a") == []
    for connection in (user, migrating, other):
        await connection.close()


async def until_waiting(connection: Connection) -> None:
    """Returns when somebody waits for a lock on a table."""
    async with asyncio.timeout(30):
        while not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND locktype = 'relation')"
        ):
            await asyncio.sleep(0.02)


async def test_migrating_is_a_step_of_its_own_before_the_start(
    empty: PostgresSettings, pki: dict[str, Paths], tmp_path: Path
) -> None:
    files = pki["ratelimit"]
    identity = {
        "tls_cert_file": files.certificate,
        "tls_key_file": files.key,
        "tls_ca_file": files.authority,
    }
    settings = Settings(**(empty.model_dump() | identity | {"migrate_on_start": False}))
    service = ServiceProcess("ratelimit", settings, tmp_path / "log")
    assert await (await service.begin()).wait() == 1
    refused = service.last_words.splitlines()[-1]
    assert refused.startswith("ratelimit cannot start: 0001_months_and_outages.sql is not applied")
    assert await tables(empty) == set()
    for _ in range(2):
        assert await (await service.begin("--migrate")).wait() == 0
    assert await tables(empty) == {
        *("monthly_usage", "local_usage", "replicas", "releases", "tombstones")
    }
    async with open_database(settings, "ratelimit", migrations_of("ratelimit")) as database:
        await database.check()
    assert await (await service.begin("--migrat")).wait() == 2
    assert service.last_words.endswith("usage: python -m services.ratelimit [--migrate]\n")
