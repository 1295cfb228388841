"""The schema of a service's database: brought to what this release knows, or found to be so."""

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import structlog

from services.shared import migrations
from services.shared.migrations import Applied, Migration, MigrationError
from services.shared.settings import PostgresSettings

if TYPE_CHECKING:
    from services.shared.postgres import Connection

# A migration may write every row anew; other replicas wait for it meanwhile.
_MIGRATION_TIMEOUT_SECONDS = 3_600.0
# For a table that others use; the calls of those who come after wait no longer than that.
_LOCK_TIMEOUT = "1s"
_LOCK_TRIES = 20
_LOCK_PAUSE_SECONDS = 1.0
# "bulkhead" in ASCII: the lock under which migrations are applied.
_MIGRATION_LOCK = 0x62756C6B68656164


async def prepare(connection: "Connection", folder: Path, settings: PostgresSettings) -> None:
    """Applies the migrations in `folder`, or makes sure that they are, as the settings say.

    Raises:
        MigrationError: they cannot be, or are not.
    """
    if settings.migrate_on_start:
        await migrate(connection, folder)
        return
    missing = migrations.pending(migrations.read_migrations(folder), await _applied(connection))
    if missing:
        raise MigrationError(f"{missing[0].name} is not applied; start it with --migrate first")


async def migrate(connection: "Connection", folder: Path) -> None:
    """Applies what is not applied yet, all or nothing, one process at a time.

    Raises:
        MigrationError: a migration was changed after it was applied; a release that runs needs what
            one takes away, or this release what a newer one has taken away; or the tables are in
            use for too long.
    """
    own = migrations.read_migrations(folder)
    for _ in range(_LOCK_TRIES):
        with suppress(asyncpg.LockNotAvailableError):
            await _migrate(connection, own)
            return
        # Whoever waits for a table keeps those who come after waiting: better to come again.
        await asyncio.sleep(_LOCK_PAUSE_SECONDS)
    raise MigrationError("the tables are in use for too long; try again when less is going on")


async def _migrate(connection: "Connection", own: list[Migration]) -> None:
    async with connection.transaction():
        await connection.execute(
            "SELECT pg_advisory_xact_lock($1)", _MIGRATION_LOCK, timeout=_MIGRATION_TIMEOUT_SECONDS
        )
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            " version integer PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        wanted = migrations.pending(own, await _applied(connection))
        if not wanted:
            return
        migrations.verify_contracts(wanted, migrations.oldest_release(await _sessions(connection)))
        await connection.execute("SELECT set_config('lock_timeout', $1, true)", _LOCK_TIMEOUT)
        await connection.execute(
            "ALTER TABLE schema_migrations"
            " ADD COLUMN IF NOT EXISTS needs integer NOT NULL DEFAULT 0"
        )
        for migration in wanted:
            await _apply(connection, migration)


async def _applied(connection: "Connection") -> list[Applied]:
    # As text: an earlier release made the table without `needs`, or there is none yet.
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        return []
    rows = await connection.fetch(
        "SELECT version, name, checksum, (to_jsonb(each)->>'needs')::integer AS needs"
        " FROM schema_migrations AS each ORDER BY version"
    )
    return [
        Applied(row["version"], row["name"], row["checksum"], row["needs"] or 0) for row in rows
    ]


async def _sessions(connection: "Connection") -> list[str]:
    """Returns what the other sessions of the service call themselves."""
    rows = await connection.fetch(
        "SELECT application_name FROM pg_stat_activity WHERE datname = current_database()"
        " AND usename = current_user AND pid <> pg_backend_pid()"
        " AND backend_type = 'client backend'"
    )
    return [row["application_name"] for row in rows]


async def _apply(connection: "Connection", migration: Migration) -> None:
    await connection.execute(migration.sql, timeout=_MIGRATION_TIMEOUT_SECONDS)
    await connection.execute(
        "INSERT INTO schema_migrations (version, name, checksum, needs) VALUES ($1, $2, $3, $4)",
        migration.version,
        migration.name,
        migration.checksum,
        migration.needs,
    )
    structlog.get_logger().info("migration applied", migration=migration.name)
