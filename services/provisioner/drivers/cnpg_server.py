"""What the superuser does at a Postgres that CloudNativePG has made, beside `Superuser`."""

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, TypeAlias

import asyncpg

from services.provisioner.drivers import local_database
from services.provisioner.drivers.cnpg_objects import COPIERS
from services.provisioner.drivers.local_database import DATABASE, MAINTENANCE
from services.provisioner.drivers.superuser import Superuser
from services.shared.ids import DeploymentId

if TYPE_CHECKING:
    _Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

# Held by whoever makes what every server begins with: "bulkhead" in ASCII.
_TURN = 0x62756C6B68656164
_HAS_SCHEMA = "SELECT to_regnamespace('bulkhead') IS NOT NULL"
_HAS_DATABASE = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)"
# How CloudNativePG's instances come to each other; before, everybody could connect here.
_REPLICAS_CONNECT = """\
DO $$
BEGIN
    IF to_regrole('streaming_replica') IS NOT NULL THEN
        GRANT CONNECT ON DATABASE postgres TO streaming_replica;
    END IF;
END
$$
"""
_NEW_COPIER = """\
SELECT format(
    'CREATE ROLE %I LOGIN REPLICATION CONNECTION LIMIT 4 IN ROLE %I', $1::text, $2::text
) WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)
"""
# However its copy ends, nobody comes by it the next day.
_ADMIT_COPIER = """\
SELECT format('ALTER ROLE %I PASSWORD %L VALID UNTIL %L', $1::text, $2::text, now() + '6 hours')
"""
_DROP_COPIER = "SELECT format('DROP ROLE IF EXISTS %I', $1::text)"
_DROP_COPIERS = """\
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT rolname FROM pg_auth_members JOIN pg_roles ON pg_roles.oid = member
        WHERE roleid = to_regrole('copiers')
    LOOP
        EXECUTE format('DROP ROLE %I', one.rolname);
    END LOOP;
END
$$
"""


async def install(superuser: Superuser) -> None:
    """Makes the roles, the database and the guard's SQL where they are missing, each as a whole."""
    async with _turn(superuser) as connection:
        if not await connection.fetchval(_HAS_SCHEMA):
            async with connection.transaction():
                await connection.execute(f"CREATE ROLE {COPIERS} NOLOGIN")
                await connection.execute(local_database.sql("roles"))
                await connection.execute(local_database.sql("guard"))
        if not await connection.fetchval(_HAS_DATABASE, DATABASE):
            await connection.execute(local_database.CREATE)
        await connection.execute(local_database.sql("grants"))
        await connection.execute(_REPLICAS_CONNECT)
        async with superuser.connected(DATABASE) as inside:
            if not await inside.fetchval(_HAS_SCHEMA):
                async with inside.transaction():
                    await inside.execute(local_database.sql("app"))
                    await inside.execute(local_database.sql("quota"))


async def disown(superuser: Superuser, verifier: str) -> None:
    """Lets no password open it that it came with; the superuser gets one of its own."""
    async with _turn(superuser) as connection, connection.transaction():
        await connection.execute("SELECT set_config('bulkhead.verifier', $1, true)", verifier)
        await connection.execute(local_database.copied())
        await connection.execute(_DROP_COPIERS)


def copier(target: DeploymentId) -> str:
    """Returns the role by which the target's database is copied from another."""
    return f"copier_{target.removeprefix('dep_')}"


async def admit_copier(superuser: Superuser, target: DeploymentId, verifier: str) -> None:
    """Lets the target's copier in."""
    async with _turn(superuser) as connection:
        for statement, *more in ((_NEW_COPIER, COPIERS), (_ADMIT_COPIER, verifier)):
            made = await connection.fetchval(statement, copier(target), *more)
            if made is not None:
                await connection.execute(made)


async def dismiss_copier(superuser: Superuser, target: DeploymentId) -> None:
    """Lets the target's copier in no more."""
    async with _turn(superuser) as connection:
        await connection.execute(await connection.fetchval(_DROP_COPIER, copier(target)))


@contextlib.asynccontextmanager
async def _turn(superuser: Superuser) -> "AsyncIterator[_Connection]":
    """Yields a connection that is the only one of its kind: two would make the same at once."""
    async with superuser.connected(MAINTENANCE) as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", _TURN)
        yield connection
