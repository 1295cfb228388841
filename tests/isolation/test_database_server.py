"""Attacks on a deployment's own server with the very connection strings that the tenant gets."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.provisioner.drivers import guard, postgres_process
from services.provisioner.drivers.local import LocalDriver, remove_home
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.protocol import Login
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId, new_deployment_id
from tests.local_databases import open_session, wanted

CAP_MILLISECONDS = 1_000
# The cap, the guard's grace and pause, and patience with a busy machine; the statements that must
# end would run for a minute.
BOUND_SECONDS = (CAP_MILLISECONDS + guard.GRACE_MILLISECONDS + guard.PAUSE_MILLISECONDS) / 1000 + 15
# A process that does not end is killed, and its server is back, within this much more.
KILLED_SECONDS = (guard.PATIENCE_MILLISECONDS + guard.PAUSE_MILLISECONDS) / 1000 + 15
READER, WRITER = DatabaseRole.READER, DatabaseRole.WRITER
BOTH = pytest.mark.parametrize("role", [READER, WRITER])

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Open = Callable[..., Awaitable[Session]]


class Target:
    """One deployment's server."""

    def __init__(self, driver: LocalDriver, address: DatabaseAddress, own: DeploymentId) -> None:
        self.driver = driver
        self.address = address
        self.deployment = own

    def login(self, role: DatabaseRole) -> Login:
        return self.driver.login(self.deployment, role, 1)


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    folder = postgres_process.reachable_home(tmp_path_factory.mktemp("attacked"))
    try:
        yield folder
    finally:
        await remove_home(folder)


@pytest.fixture(scope="module")
async def target(home: Path) -> Target:
    secret = MasterSecret(b"a secret that guards nothing at all")
    driver = LocalDriver(home, secret, PortRange(20_000, 31_999), CAP_MILLISECONDS)
    deployment = new_deployment_id()
    return Target(driver, await driver.ensure(wanted(deployment)), deployment)


@pytest.fixture
async def connect(target: Target) -> AsyncIterator[Open]:
    opened = []

    async def connected(
        role: DatabaseRole, password: str | None = None, database: str = "app"
    ) -> Session:
        login = target.login(role)
        if password is not None:
            login = replace(login, password=password)
        session = await when_recovered(lambda: open_session(target.address, login, database))
        opened.append(session)
        return session

    yield connected
    for session in opened:
        with contextlib.suppress(asyncpg.InterfaceError, asyncpg.PostgresError, OSError):
            await session.close(timeout=2)


FORBIDDEN = {
    "read a file": "SELECT pg_read_file('/etc/passwd')",
    "read its own configuration": "SELECT pg_read_file('pg_hba.conf')",
    "read a binary file": "SELECT pg_read_binary_file('/etc/passwd')",
    "look at a file": "SELECT pg_stat_file('/etc/passwd')",
    "list a folder": "SELECT pg_ls_dir('/')",
    "list the log's folder": "SELECT pg_ls_logdir()",
    "copy from a file": "CREATE TEMP TABLE t (a text); COPY t FROM '/etc/passwd'",
    "copy to a file": "COPY (SELECT 1) TO '/tmp/bulkhead-attack'",
    "run a program by copying": "COPY (SELECT 1) TO PROGRAM 'touch /tmp/bulkhead-attack'",
    "import a large object": "SELECT lo_import('/etc/passwd')",
    "export a large object": "SELECT lo_export(1, '/tmp/bulkhead-attack')",
    "create a role": "CREATE ROLE intruder LOGIN",
    "make itself superuser": "ALTER ROLE writer SUPERUSER",
    "let itself connect more often": "ALTER ROLE reader_a CONNECTION LIMIT 100",
    "let its role log in": "ALTER ROLE writer LOGIN",
    "change the guard's password": "ALTER ROLE guard PASSWORD 'x'",
    "change the next login's password": "ALTER ROLE writer_b PASSWORD 'x'",
    "become the next login": "SET ROLE writer_b",
    "let others be it": "GRANT writer_a TO writer_b",
    "drop a role": "DROP ROLE guard",
    "create a database": "CREATE DATABASE other",
    "change its database": "ALTER DATABASE app SET statement_timeout = 0",
    "drop its database": "DROP DATABASE app",
    "create a schema": "CREATE SCHEMA own",
    "create an extension": "CREATE EXTENSION vector",
    "create a language": "CREATE LANGUAGE own HANDLER plpgsql_call_handler",
    "create a function in C": (
        "CREATE FUNCTION f() RETURNS int LANGUAGE c AS '/lib/libc.so.6', 'system'"
    ),
    "load a library": "LOAD '/lib/x86_64-linux-gnu/libc.so.6'",
    "become the superuser": "SET ROLE postgres",
    "become the guard": "SET ROLE guard",
    "pass itself off as the superuser": "SET SESSION AUTHORIZATION postgres",
    "become a role that runs programs": "SET ROLE pg_execute_server_program",
    "join a role": "GRANT pg_read_server_files TO CURRENT_USER",
    "configure the server": "ALTER SYSTEM SET statement_timeout = 0",
    "reload the configuration": "SELECT pg_reload_conf()",
    "rotate the log": "SELECT pg_rotate_logfile()",
    "fill the disk with sorting": "SET temp_file_limit = -1",
    "hide from the guard": "SET track_activities = off",
    "hide its process": "SET update_process_title = off",
    "log what others ask": "SET log_statement = 'all'",
    "read password verifiers": "SELECT rolpassword FROM pg_authid",
    "read verifiers by another view": "SELECT passwd FROM pg_shadow",
    "read the rules of access": "SELECT * FROM pg_hba_file_rules",
    "see where the data is": "SHOW data_directory",
    "see where the rules are": "SHOW hba_file",
    "create an event trigger": (
        "CREATE EVENT TRIGGER t ON ddl_command_start EXECUTE FUNCTION pg_catalog.now()"
    ),
    "subscribe to another server": (
        "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p"
    ),
    "make a replication slot": "SELECT pg_create_physical_replication_slot('s')",
    "create a tablespace": "CREATE TABLESPACE t LOCATION '/tmp'",
    "write the log of changes": "SELECT pg_logical_emit_message(false, 'a', 'b')",
    "end the guard": (
        "SELECT CASE WHEN pg_terminate_backend(pid) THEN 1 END FROM pg_stat_activity"
        " WHERE usename = 'guard'"
    ),
    "write the catalog": "UPDATE pg_database SET datconnlimit = 0",
}


def was_attacked() -> bool:
    return Path("/tmp/bulkhead-attack").exists()  # noqa: S108 the attacks name it


@pytest.mark.promise("P-02")
@BOTH
@pytest.mark.parametrize("attack", FORBIDDEN)
async def test_a_tenants_role_cannot(connect: Open, role: DatabaseRole, attack: str) -> None:
    session = await connect(role)
    with pytest.raises(
        (
            asyncpg.InsufficientPrivilegeError,
            asyncpg.CantChangeRuntimeParamError,
            asyncpg.UndefinedFileError,
        )
    ):
        await session.execute(FORBIDDEN[attack])
    assert not was_attacked()


@pytest.mark.promise("P-02")
@pytest.mark.parametrize(
    "attack",
    [
        "CREATE TABLE own (a int)",
        "CREATE TEMP TABLE own (a int)",
        "CREATE FUNCTION own() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'x')",
        "INSERT INTO kept VALUES (1)",
        "UPDATE kept SET a = 1",
        "TRUNCATE kept",
        "DROP TABLE kept",
        "BEGIN; LOCK TABLE kept IN EXCLUSIVE MODE",
    ],
)
async def test_the_reader_writes_nothing(connect: Open, attack: str) -> None:
    writer = await connect(WRITER)
    await writer.execute("CREATE TABLE IF NOT EXISTS kept (a int)")
    reader = await connect(READER)
    assert await reader.fetchval("SELECT count(*) FROM kept") == 0
    await reader.execute("SET default_transaction_read_only = off")
    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError)):
        await reader.execute(attack)


@pytest.mark.promise("P-02")
@BOTH
@pytest.mark.parametrize("database", ["postgres", "template1", "template0"])
async def test_no_other_database_of_the_server_opens(
    connect: Open, role: DatabaseRole, database: str
) -> None:
    with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
        await connect(role, database=database)


@pytest.mark.promise("P-02")
async def test_the_server_refuses_everyone_without_the_right_password(
    connect: Open, target: Target
) -> None:
    for role in DatabaseRole:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await connect(role, password="wrong")
    for user in ("postgres", "guard", "nobody"):
        for password in ("", "postgres", target.login(WRITER).password):
            with pytest.raises(asyncpg.PostgresError):
                await asyncpg.connect(
                    host=target.address.host,
                    port=target.address.port,
                    user=user,
                    password=password,
                    database="postgres",
                    ssl=False,
                )


@pytest.mark.promise("P-02")
async def test_a_server_listens_on_the_loopback_interface_alone(target: Target, home: Path) -> None:
    options = (home / target.deployment / "postmaster.opts").read_text()
    assert '"--listen_addresses=127.0.0.1"' in options
    assert '"--unix_socket_directories="' in options


async def ended_after(running: Awaitable[object]) -> float:
    """Returns the seconds until the statement was ended by the server."""
    begun = time.monotonic()
    with pytest.raises(
        (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.ConnectionDoesNotExistError)
    ):
        await running
    return time.monotonic() - begun


@pytest.mark.promise("P-02")
@BOTH
async def test_a_long_statement_ends_at_the_cap(connect: Open, role: DatabaseRole) -> None:
    session = await connect(role)
    begun = time.monotonic()
    with pytest.raises(asyncpg.QueryCanceledError):
        await session.execute("SELECT pg_sleep(60)")
    assert CAP_MILLISECONDS / 1000 <= time.monotonic() - begun < BOUND_SECONDS
    assert await session.fetchval("SELECT 1") == 1


RAISED = {
    "in the session": "SET statement_timeout = 0",
    "by a function": "SELECT set_config('statement_timeout', '0', false)",
    "for the transaction": "BEGIN; SET LOCAL statement_timeout = '1h'",
}


@pytest.mark.promise("P-02")
@BOTH
@pytest.mark.parametrize("way", RAISED)
async def test_raising_the_timeout_does_not_raise_the_cap(
    connect: Open, role: DatabaseRole, way: str
) -> None:
    session = await connect(role)
    await session.execute(RAISED[way])
    seconds = await ended_after(session.execute("SELECT pg_sleep(60)"))
    assert CAP_MILLISECONDS / 1000 <= seconds < BOUND_SECONDS


LONG = {
    "a prepared statement": "SELECT pg_sleep(60) WHERE $1 = 1",
    "a busy loop": "SELECT count(*) FROM generate_series(1, 10000000000) WHERE $1 = 1",
}


@pytest.mark.promise("P-02")
@pytest.mark.parametrize("way", LONG)
async def test_the_cap_holds_for(connect: Open, way: str) -> None:
    session = await connect(READER)
    await session.execute("SET statement_timeout = 0")
    assert await ended_after(session.fetch(LONG[way], 1)) < BOUND_SECONDS


@pytest.mark.promise("P-02")
async def test_code_that_will_not_be_cancelled_is_ended_with_its_session(connect: Open) -> None:
    session = await connect(WRITER)
    await session.execute("SET statement_timeout = 0")
    stubborn = """
        DO $$ BEGIN LOOP
            BEGIN PERFORM pg_sleep(60);
            EXCEPTION WHEN query_canceled OR OTHERS THEN NULL;
            END;
        END LOOP; END $$
    """
    assert await ended_after(session.execute(stubborn)) < BOUND_SECONDS


SETTINGS = (
    "SELECT unnest(setconfig) AS setting FROM pg_db_role_setting ORDER BY setrole::regrole::text, 1"
)
OURS = ["role=reader", "role=reader", "role=writer", "role=writer"]


@pytest.mark.promise("P-02")
@pytest.mark.parametrize(
    "change", ["ALTER ROLE {} SET {} = 0", "ALTER ROLE {} IN DATABASE app SET {} = 0"]
)
@BOTH
async def test_a_role_cannot_keep_defaults_of_its_own(
    connect: Open, role: DatabaseRole, change: str
) -> None:
    session = await connect(role)
    for mine in (role.value, f"{role.value}_a"):
        # Either is changed by itself alone.
        await session.execute(f"SET ROLE {'NONE' if mine != role.value else mine}")
        await session.execute(change.format(mine, "statement_timeout"))
    await session.execute(f"ALTER ROLE {role.value}_a RESET role")
    async with asyncio.timeout(30):
        while [row["setting"] for row in await session.fetch(SETTINGS)] != OURS:
            await asyncio.sleep(0.05)
    fresh = await connect(role)
    assert await fresh.fetchval("SHOW statement_timeout") == f"{CAP_MILLISECONDS // 1000}s"
    assert await fresh.fetchval("SELECT current_user") == role.value


async def when_recovered(open_session: Callable[[], Awaitable[Session]]) -> Session:
    """Returns a session; the test before may have left the server in its crash recovery."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await open_session()
            except (asyncpg.CannotConnectNowError, ConnectionError):
                await asyncio.sleep(0.05)


async def comes_in(connect: Open, role: DatabaseRole, password: str | None = None) -> Session:
    """Returns a session of `role` that works, as soon as there is one."""
    async with asyncio.timeout(30):
        while True:
            try:
                session = await connect(role, password)
                await session.fetchval("SELECT 1")
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await asyncio.sleep(0.05)
            else:
                return session


@pytest.mark.promise("P-02")
async def test_a_role_cannot_keep_a_password_of_its_own(connect: Open) -> None:
    session = await connect(WRITER)
    await session.execute("SET ROLE NONE; ALTER ROLE writer_a PASSWORD 'mine'")
    intruder = await connect(WRITER, password="mine")
    await comes_in(connect, WRITER)
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connect(WRITER, password="mine")
    # Sessions that may have been opened with it are out.
    for one in (session, intruder):
        await is_ended(one)


async def is_ended(session: Session) -> None:
    """Returns when the server has ended the session."""
    with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
        async with asyncio.timeout(30):
            while True:
                await session.fetchval("SELECT 1")
                await asyncio.sleep(0.02)


async def becomes_old(session: Session) -> None:
    """Returns when `session` is too old to have come in by a password that is changed from now."""
    margin = "current_setting('authentication_timeout')::interval + interval '2 s'"
    own = "FROM pg_stat_activity WHERE pid = pg_backend_pid()"
    # A login sees its own sessions, the role that it acts as does not.
    await session.execute("SET ROLE NONE")
    async with asyncio.timeout(30):
        while await session.fetchval(f"SELECT clock_timestamp() - backend_start < {margin} {own}"):
            await asyncio.sleep(0.1)


@pytest.mark.promise("P-02")
async def test_changing_the_password_does_not_end_older_sessions_of_the_role(connect: Open) -> None:
    attacker, innocent = await connect(READER), await connect(READER)
    await becomes_old(innocent)
    for _ in range(3):
        await attacker.execute("SET ROLE NONE; ALTER ROLE reader_a PASSWORD 'mine'")
        intruder = await connect(READER, "mine")
        await comes_in(connect, READER)
        await is_ended(intruder)
    assert await innocent.fetchval("SELECT 1") == 1


@pytest.mark.promise("P-02")
async def test_an_old_session_cannot_hold_a_password_with_an_open_transaction(
    connect: Open,
) -> None:
    session = await connect(WRITER)
    await becomes_old(session)
    change = "ALTER ROLE writer_a PASSWORD 'mine'"
    await session.execute(f"SET ROLE NONE; {change}; COMMIT; BEGIN; {change}")
    await comes_in(connect, WRITER)
    await is_ended(session)


# What no timeout, no cancel and no pg_terminate_backend ends: C code that does not look for them.
# It would run for some minutes.
DEAF = "SELECT length(translate(repeat('a', 1000000), repeat('b', 70000), ''))"


@pytest.mark.promise("P-02")
@BOTH
async def test_code_that_does_not_look_whether_it_should_end_is_killed(
    connect: Open, role: DatabaseRole
) -> None:
    session = await connect(role)
    assert await ended_after(session.execute(DEAF)) < BOUND_SECONDS + KILLED_SECONDS
    # The guard comes back with the server.
    again = await comes_in(connect, role)
    await again.execute("SET statement_timeout = 0")
    ended = await ended_after(again.execute("SELECT pg_sleep(60)"))
    assert ended < BOUND_SECONDS + guard.PAUSE_MILLISECONDS / 1000


@pytest.mark.promise("P-02")
async def test_code_that_cannot_be_ended_does_not_hold_a_password(connect: Open) -> None:
    session = await connect(WRITER)
    change = "ALTER ROLE writer_a PASSWORD 'mine'"
    begun = time.monotonic()
    held = session.execute(f"SET ROLE NONE; {change}; COMMIT; BEGIN; {change}; {DEAF}")
    running = asyncio.ensure_future(ended_after(held))
    intruder = await comes_in(connect, WRITER, "mine")
    await running
    await is_ended(intruder)
    again = await comes_in(connect, WRITER)
    assert time.monotonic() - begun < BOUND_SECONDS + 2 * KILLED_SECONDS
    with pytest.raises(asyncpg.InvalidPasswordError):
        await connect(WRITER, password="mine")
    assert await again.fetchval("SELECT 1") == 1


@pytest.mark.promise("P-02")
async def test_a_role_that_holds_the_catalogs_lock_does_not_stop_the_guard(connect: Open) -> None:
    first, second, third = [await connect(WRITER) for _ in range(3)]
    await second.execute("BEGIN; ALTER ROLE writer SET work_mem = '1MB'")
    await third.execute("SET statement_timeout = 0")
    running = asyncio.ensure_future(ended_after(third.execute("SELECT pg_sleep(60)")))
    await first.execute("ALTER ROLE writer IN DATABASE app SET work_mem = '2MB'")
    assert await running < BOUND_SECONDS


@pytest.mark.promise("P-02")
async def test_connections_are_limited_so_that_the_guard_always_has_one(connect: Open) -> None:
    for _ in range(8):
        await connect(WRITER)
    with pytest.raises(asyncpg.TooManyConnectionsError):
        await connect(WRITER)


@pytest.fixture
async def hasty(target: Target, home: Path) -> AsyncIterator[None]:
    """Autovacuum looks every second, not every minute."""
    directory = home / target.deployment
    settings = directory / "postgresql.auto.conf"
    before = settings.read_text()
    server = postgres_process.running(directory)
    assert server is not None
    settings.write_text(f"{before}autovacuum_naptime = 1s\n")
    os.kill(server.pid, signal.SIGHUP)
    yield
    settings.write_text(before)
    os.kill(server.pid, signal.SIGHUP)


UPKEEP = "SELECT pid FROM pg_stat_progress_analyze"
ENDLESS = {
    "that can be ended": "LOOP PERFORM pg_sleep(0.01); END LOOP;",
    "that cannot be ended": (
        "PERFORM length(translate(repeat('a', 1000000), repeat('b', 70000), ''));"
    ),
}


@pytest.mark.promise("P-02")
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("way", ENDLESS)
async def test_autovacuum_does_not_run_a_tenants_code_for_ever(connect: Open, way: str) -> None:
    writer = await connect(WRITER)
    await writer.execute(f"""
        CREATE FUNCTION endless(a int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN
            IF inet_client_addr() IS NULL THEN {ENDLESS[way]} END IF;
            RETURN a;
        END $$;
        CREATE TABLE kept_up (a int) WITH (autovacuum_analyze_threshold = 1);
        CREATE INDEX ON kept_up (endless(a));
        INSERT INTO kept_up SELECT generate_series(1, 1000);
    """)
    await writer.close()  # It tells now, not later, what it wrote.
    writer = await connect(WRITER)
    async with asyncio.timeout(30):
        while not (worker := await writer.fetchval(UPKEEP)):
            await asyncio.sleep(0.05)
    async with asyncio.timeout(BOUND_SECONDS + KILLED_SECONDS):
        with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            while worker in [row["pid"] for row in await writer.fetch(UPKEEP)]:
                await asyncio.sleep(0.05)
    again = await comes_in(connect, WRITER)
    # The worker that may be there by now is in the way for a second.
    await again.execute("SET statement_timeout = 0; DROP TABLE kept_up; DROP FUNCTION endless")


@pytest.mark.promise("P-02")
async def test_who_connects_and_says_nothing_does_not_keep_others_out(
    connect: Open, target: Target
) -> None:
    async with contextlib.AsyncExitStack() as silent:
        for _ in range(80):
            _, mute = await asyncio.open_connection(target.address.host, target.address.port)
            silent.callback(mute.close)
        session = await comes_in(connect, READER)
        assert await session.fetchval("SELECT 1") == 1


@pytest.mark.promise("P-02")
async def test_the_cap_holds_after_a_restart_of_the_server(
    connect: Open, target: Target, home: Path
) -> None:
    await postgres_process.stop(home / target.deployment)
    target.address = await target.driver.ensure(wanted(target.deployment, target.address.port))
    session = await connect(WRITER)
    await session.execute("SET statement_timeout = 0")
    assert await ended_after(session.execute("SELECT pg_sleep(60)")) < BOUND_SECONDS
