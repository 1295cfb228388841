"""Attacks on a database's storage quota, by its owner (P-03)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from services.app_proxy.database.catalogue_queries import ALL_TABLES
from services.app_proxy.database.executor import Executor, Owner
from services.app_proxy.database.failures import StatementError
from services.app_proxy.database.pools import open_pools
from services.app_proxy.database.results import Caps
from services.app_proxy.database.roles import Address, Role
from services.app_proxy.database.sessions import PoolLimits
from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.local import LocalDriver, remove_home
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId, new_deployment_id
from tests.local_databases import QUOTA_BYTES, open_session, wanted

PATIENCE_SECONDS = 30
MEGABYTE = 1 << 20
# What can be written until the guard has looked and ended it, however busy the machine is; what is
# attacked with would write ninety times as much.
MOST_OVERSHOOT = 1000 * MEGABYTE
# Catalogs, and what our own triggers take.
NOTHING_BYTES = 2 * MEGABYTE
# The last is the driver's, when the server's word of the end comes between two statements.
ENDED = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, asyncpg.InternalClientError)

Session: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Connect = Callable[[], Awaitable[Session]]


class Stored:
    """One deployment's database, and how much it holds."""

    def __init__(self, driver: LocalDriver, address: DatabaseAddress, own: DeploymentId) -> None:
        self.driver = driver
        self.address = address
        self.deployment = own

    async def address_of(self, role: Role) -> Address:
        login = self.driver.login(self.deployment, DatabaseRole(role.value), 1)
        return Address(self.address.host, self.address.port, "app", login.user, login.password)

    async def used(self) -> int:
        measured = await self.driver.measure(self.deployment)
        assert measured is not None
        return measured.used_bytes

    async def over(self) -> bool:
        measured = await self.driver.measure(self.deployment)
        assert measured is not None
        return measured.over_quota

    async def allow(self, quota_bytes: int) -> None:
        await self.driver.set_quota(self.deployment, quota_bytes)

    async def fill(self) -> int:
        """Leaves no room; returns how many bytes are held."""
        await self.allow(1)
        return await self.used()


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    folder = postgres_process.reachable_home(tmp_path_factory.mktemp("stored"))
    try:
        yield folder
    finally:
        await remove_home(folder)


MADE = """
    CREATE TABLE kept (a int PRIMARY KEY, b text);
    INSERT INTO kept SELECT g, repeat('b', 900) FROM generate_series(1, 1000) AS g;
    CREATE TABLE spared (a int);
    CREATE TABLE parted (a int) PARTITION BY LIST (a);
    CREATE TABLE part PARTITION OF parted FOR VALUES IN (1);
    CREATE MATERIALIZED VIEW seen AS SELECT * FROM kept;
    CREATE VIEW through AS SELECT * FROM kept;
    CREATE FUNCTION adds() RETURNS void SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO kept SELECT g, 'more' FROM generate_series(2000, 3000) AS g;
    END $$;
    CREATE RULE adds AS ON DELETE TO spared DO ALSO INSERT INTO kept VALUES (-1, 'by a rule');
"""


@pytest.fixture(scope="module")
async def stored(home: Path) -> Stored:
    secret = MasterSecret(b"a secret that guards nothing at all")
    driver = LocalDriver(home, secret, PortRange(20_000, 31_999), 60_000)
    deployment = new_deployment_id()
    one = Stored(driver, await driver.ensure(wanted(deployment)), deployment)
    session = await open_session(one.address, driver.login(deployment, DatabaseRole.WRITER, 1))
    await session.execute(MADE)
    await session.close()
    return one


@pytest.fixture
async def connect(stored: Stored) -> AsyncIterator[Connect]:
    opened = []
    await stored.allow(QUOTA_BYTES)

    async def writer() -> Session:
        login = stored.driver.login(stored.deployment, DatabaseRole.WRITER, 1)
        opened.append(await open_session(stored.address, login))
        return opened[-1]

    yield writer
    for session in opened:
        with contextlib.suppress(*ENDED):
            await session.close(timeout=2)
    await stored.allow(QUOTA_BYTES)


async def becomes(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.05)


async def is_ended(session: Session) -> None:
    async def ended() -> bool:
        try:
            await session.fetchval("SELECT 1")
        except ENDED:
            return True
        return False

    await becomes(ended)


ADDITIONS = {
    "insert": "INSERT INTO spared VALUES (1)",
    "insert into a partition": "INSERT INTO part VALUES (1)",
    "insert into what is parted": "INSERT INTO parted VALUES (1)",
    "insert through a view": "INSERT INTO through VALUES (-1, 'x')",
    "insert by a function": "SELECT adds()",
    "insert by a rule": "DELETE FROM spared",
    "insert what is deleted": "WITH x AS (DELETE FROM kept RETURNING *) INSERT INTO kept TABLE x",
    "insert or update": "INSERT INTO kept VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 'longer'",
    "insert without a role": "SET ROLE NONE; INSERT INTO spared VALUES (1)",
    "update": "UPDATE kept SET b = b || b",
    "merge": (
        "MERGE INTO kept USING (SELECT 0 AS a) AS s ON kept.a = s.a"
        " WHEN NOT MATCHED THEN INSERT VALUES (0, 'x')"
    ),
    "create a table": "CREATE TABLE fresh (a int)",
    "create a table of rows": "CREATE TABLE fresh AS TABLE kept",
    "select into a table": "SELECT * INTO fresh FROM kept",
    "create a temporary table": "CREATE TEMP TABLE fresh AS TABLE kept",
    "attach a partition": "CREATE TABLE fresh PARTITION OF parted FOR VALUES IN (2)",
    "create an index": "CREATE INDEX ON kept (b)",
    "create an index beside others": "CREATE INDEX CONCURRENTLY ON kept (b)",
    "create a materialized view": "CREATE MATERIALIZED VIEW fresh AS TABLE kept",
    "refresh a materialized view": "REFRESH MATERIALIZED VIEW seen",
    "create a function": "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "create a sequence": "CREATE SEQUENCE fresh",
    "create a rule": "CREATE RULE r AS ON DELETE TO kept DO ALSO NOTHING",
    "comment at length": "DO $$ BEGIN EXECUTE 'COMMENT ON TABLE kept IS ' || quote_literal(repeat('x', 99999)); END $$",  # noqa: E501
    "bloat the catalogs": "DO $$ BEGIN FOR i IN 1..9 LOOP EXECUTE 'CREATE TABLE b' || i || ' ()'; END LOOP; END $$",  # noqa: E501
    "rewrite a table": "ALTER TABLE kept ADD COLUMN c text DEFAULT repeat('x', 999)",
    "disable the trigger": "ALTER TABLE kept DISABLE TRIGGER USER",
    "give the table away": "ALTER TABLE kept OWNER TO writer",
    "drop the trigger": """
        DO $$ DECLARE name text; BEGIN
            SELECT tgname INTO STRICT name FROM pg_trigger
                WHERE tgrelid = 'kept'::regclass AND NOT tgisinternal;
            EXECUTE format('DROP TRIGGER %I ON kept', name);
        END $$
    """,
}


@pytest.mark.promise("P-03")
async def test_nothing_is_added_beyond_the_quota(stored: Stored, connect: Connect) -> None:
    held = await stored.fill()
    session = await connect()
    for way, sql in ADDITIONS.items():
        with pytest.raises(asyncpg.DiskFullError) as refused:
            await session.execute(sql)
        assert "quota" in str(refused.value), way
    with pytest.raises(asyncpg.DiskFullError):
        await session.copy_records_to_table("spared", records=[(1,)])
    assert await stored.used() < held + NOTHING_BYTES


# What EXPLAIN carries out fires no event trigger.
EXPLAINED = {
    "a table": "EXPLAIN ANALYZE CREATE TABLE fresh AS TABLE kept",
    "a table beside the log": "EXPLAIN ANALYZE CREATE UNLOGGED TABLE fresh AS TABLE kept",
    "a temporary table": "EXPLAIN ANALYZE CREATE TEMP TABLE fresh AS TABLE kept",
    "a materialized view": "EXPLAIN ANALYZE CREATE MATERIALIZED VIEW fresh AS TABLE kept",
    "select into": "EXPLAIN ANALYZE SELECT * INTO fresh FROM kept",
    "prepared": "PREPARE p AS TABLE kept; EXPLAIN ANALYZE CREATE TABLE fresh AS EXECUTE p",
    "prepared, not explained": "PREPARE q AS TABLE kept; CREATE TABLE fresh AS EXECUTE q",
    "rows": "EXPLAIN ANALYZE INSERT INTO spared VALUES (1)",
    "prepared rows": "PREPARE r AS INSERT INTO spared VALUES (1); EXPLAIN ANALYZE EXECUTE r",
    "without a role": "SET ROLE NONE; EXPLAIN ANALYZE CREATE TABLE fresh AS TABLE kept",
    "in a function": "DO $$ BEGIN EXPLAIN ANALYZE CREATE TABLE fresh AS TABLE kept; END $$",
}


@pytest.mark.promise("P-03")
async def test_nothing_is_added_by_explaining_how(stored: Stored, connect: Connect) -> None:
    held = await stored.fill()
    session = await connect()
    for way, sql in EXPLAINED.items():
        with pytest.raises((asyncpg.DiskFullError, asyncpg.InsufficientPrivilegeError)):
            raise AssertionError(f"{way}: {await session.execute(sql)}")
    assert await session.fetchval("SELECT to_regclass('fresh')") is None
    assert await stored.used() < held + NOTHING_BYTES
    await stored.allow(QUOTA_BYTES)
    await session.execute(f"SET ROLE writer; {EXPLAINED['a temporary table']}; DROP TABLE fresh")
    await session.execute(f"{EXPLAINED['a table']}; DROP TABLE fresh")


@pytest.mark.promise("P-03")
@pytest.mark.parametrize(
    "way", ["lo_create(0)", "lo_from_bytea(0, 'x')", "lo_put(1, 0, 'x')", "lo_truncate(0, 9)"]
)
async def test_no_large_object_grows_beyond_the_quota(
    stored: Stored, connect: Connect, way: str
) -> None:
    session = await connect()
    await session.execute("SELECT lo_unlink(oid) FROM pg_largeobject_metadata")
    await session.execute("SELECT lo_from_bytea(1, 'kept')")
    await stored.fill()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await session.execute(f"BEGIN; SELECT lo_open(1, 131072); SELECT {way}")
    await session.execute("ROLLBACK")
    assert await session.fetchval("SELECT lo_get(1)") == b"kept"
    assert await session.fetchval("SELECT lo_unlink(1)") == 1


@pytest.mark.promise("P-03")
async def test_reading_and_deleting_work_beyond_the_quota(stored: Stored, connect: Connect) -> None:
    setting = await connect()
    await setting.execute("CREATE TABLE going AS TABLE kept; CREATE TABLE gone (a int)")
    await stored.fill()
    session = await connect()
    assert await session.fetchval("SELECT count(*) FROM going") == 1000
    assert await session.execute("DELETE FROM going WHERE a > 10") == "DELETE 990"
    for sql in ("VACUUM going", "VACUUM FULL going", "TRUNCATE gone", "DROP TABLE gone, going"):
        await session.execute(sql)


@pytest.mark.promise("P-03")
async def test_the_refusal_says_what_to_do(stored: Stored, connect: Connect) -> None:
    session = await connect()
    await stored.allow(5 * MEGABYTE)
    with pytest.raises(asyncpg.DiskFullError) as refused:
        await session.execute("INSERT INTO spared VALUES (1)")
    assert refused.value.sqlstate == "53100"
    assert "5120 kB" in str(refused.value)
    assert "TRUNCATE" in (refused.value.as_dict()["hint"] or "")


@pytest.mark.promise("P-03")
async def test_an_agents_tool_is_told_of_the_quota(stored: Stored, connect: Connect) -> None:
    class Addresses:
        async def address(self, key: str, role: Role) -> Address:
            return await stored.address_of(role)

    await connect()
    await stored.fill()
    limits = PoolLimits(size=1, most=2, idle_seconds=30, wait_seconds=30)
    async with open_pools(Addresses(), limits) as pools:
        executor = Executor(pools, Caps(rows=10, size=10_000, wire=1_000_000, seconds=30))
        owner = Owner(stored.deployment, "a key", 1)
        with pytest.raises(StatementError) as failed:
            await executor.execute(owner, "INSERT INTO spared VALUES (1)", [])
        failure = failed.value.failure
        assert failure.code == "53100"
        assert "quota" in failure.message
        assert "TRUNCATE" in (failure.hint or "")
        assert (await executor.query(owner, "SELECT count(*) FROM kept", [])).rows


# Rows as they come: in FROM, Postgres would collect them in a temporary file first.
ENDLESS = "INSERT INTO {} SELECT generate_series(10000, 90000000), repeat('b', 900)"
BEGUN = {
    "an insert": ENDLESS.format("kept"),
    "a new table": ("CREATE TABLE fresh AS SELECT generate_series(1, 90000000), repeat('x', 900)"),
    "a new table's rows": f"BEGIN; CREATE TABLE fresh (a int, b text); {ENDLESS.format('fresh')}",
    "a temporary table": f"CREATE TEMP TABLE fresh (a int, b text); {ENDLESS.format('fresh')}",
    "large objects": (
        "SELECT lo_from_bytea(0, decode(repeat('00', 100000), 'hex')), generate_series(1, 900000)"
    ),
    "a loop of comments": """
        DO $$ BEGIN FOR i IN 1..9000000 LOOP
            EXECUTE 'COMMENT ON TABLE kept IS ' || quote_literal(
                (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 900)));
        END LOOP; END $$
    """,
}


@pytest.mark.promise("P-03")
@pytest.mark.parametrize("way", BEGUN)
async def test_what_began_before_ends_soon_after_the_quota_is_passed(
    stored: Stored, connect: Connect, way: str
) -> None:
    session = await connect()
    quota = await stored.used() + 4 * MEGABYTE
    await stored.allow(quota)
    async with asyncio.timeout(2 * PATIENCE_SECONDS):
        with pytest.raises(ENDED) as ended:
            await session.execute(BEGUN[way])
    assert session.is_closed() or isinstance(ended.value, asyncpg.DiskFullError)
    assert await stored.used() < quota + MOST_OVERSHOOT
    cleared = await connect()
    await cleared.execute("TRUNCATE kept; SELECT lo_unlink(oid) FROM pg_largeobject_metadata")


@pytest.mark.promise("P-03")
async def test_two_sessions_at_once_pass_the_quota_no_further(
    stored: Stored, connect: Connect
) -> None:
    quota = await stored.used() + 4 * MEGABYTE
    await stored.allow(quota)
    writing = [
        (await connect()).execute(ENDLESS.format("kept").replace("10000", str(first)))
        for first in (10_000, 50_000_000)
    ]
    async with asyncio.timeout(2 * PATIENCE_SECONDS):
        ended = await asyncio.gather(*writing, return_exceptions=True)
    assert all(isinstance(one, ENDED) for one in ended)
    assert not any(isinstance(one, asyncpg.ConfigurationLimitExceededError) for one in ended)
    assert await stored.used() < quota + MOST_OVERSHOOT
    await (await connect()).execute("TRUNCATE kept")


@pytest.mark.promise("P-03")
async def test_an_old_snapshot_does_not_hide_the_quota(stored: Stored, connect: Connect) -> None:
    for sql in ("CREATE TABLE fresh (a int)", "INSERT INTO spared VALUES (1)"):
        session = await connect()
        await session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
        await stored.fill()
        with pytest.raises(asyncpg.DiskFullError):
            await session.execute(sql)
        await stored.allow(QUOTA_BYTES)


@pytest.mark.promise("P-03")
@pytest.mark.parametrize(
    "held",
    [
        "DELETE FROM spared WHERE false",
        "LOCK TABLE spared IN SHARE MODE",
        "CREATE TEMP TABLE mine (a int); COMMIT; BEGIN",
    ],
)
async def test_a_lock_or_a_table_of_its_own_keeps_no_session_out_of_the_quota(
    stored: Stored, connect: Connect, held: str
) -> None:
    session = await connect()
    await session.execute(f"BEGIN; {held}")
    await stored.fill()
    await is_ended(session)
    with pytest.raises(asyncpg.DiskFullError):
        await (await connect()).execute("INSERT INTO spared VALUES (1)")


@pytest.mark.promise("P-03")
async def test_writes_work_again_when_there_is_room(stored: Stored, connect: Connect) -> None:
    session = await connect()
    await session.execute(
        "CREATE TABLE large AS"
        " SELECT repeat(md5(g::text), 30) AS b FROM generate_series(1, 9000) AS g"
    )
    await stored.allow(await stored.used() - 2 * MEGABYTE)
    with pytest.raises(asyncpg.DiskFullError):
        await session.execute("INSERT INTO spared VALUES (1)")
    await session.execute("DELETE FROM large")
    await session.execute("VACUUM FULL large")

    async def writes() -> bool:
        try:
            await session.execute("INSERT INTO spared VALUES (1)")
        except asyncpg.DiskFullError:
            return False
        return True

    await becomes(writes)
    assert not await stored.over()
    await session.execute("DROP TABLE large; SELECT lo_unlink(lo_from_bytea(0, 'x'))")


@pytest.mark.promise("P-03")
async def test_notifications_that_nobody_takes_do_not_pile_up(
    stored: Stored, connect: Connect
) -> None:
    # They lie beside the database, where the quota does not count them.
    deaf, loud = await connect(), await connect()
    await deaf.execute("LISTEN piled")
    await deaf.execute("BEGIN; SELECT 1")
    # Each a short transaction: whoever has a long one then, goes too.
    for _ in range(30):
        await loud.execute(
            "SELECT pg_notify('piled', g || repeat('x', 7000)) FROM generate_series(1, 300) AS g"
        )
    await is_ended(deaf)

    async def is_cleared() -> bool:
        usage = await loud.fetchval("SELECT pg_notification_queue_usage()")
        return bool(usage == 0)

    await becomes(is_cleared)


@pytest.mark.promise("P-03")
async def test_raising_the_quota_takes_effect_at_once(stored: Stored, connect: Connect) -> None:
    session = await connect()
    await stored.fill()
    with pytest.raises(asyncpg.DiskFullError):
        await session.execute("INSERT INTO spared VALUES (1)")
    await stored.allow(QUOTA_BYTES)
    await session.execute("INSERT INTO spared VALUES (1); CREATE TABLE fresh (a int)")
    await session.execute("DROP TABLE fresh; SELECT lo_unlink(lo_from_bytea(0, 'x'))")


@pytest.mark.promise("P-03")
async def test_the_quota_holds_after_a_restart(
    stored: Stored, connect: Connect, home: Path
) -> None:
    await (await connect()).close()
    await stored.driver.sleep(stored.deployment)
    assert await stored.driver.measure(stored.deployment) is None
    await stored.driver.set_quota(stored.deployment, 1)
    stored.address = await stored.driver.ensure(
        wanted(stored.deployment, stored.address.port, quota_bytes=1)
    )
    with pytest.raises(asyncpg.DiskFullError):
        await (await connect_full(stored)).execute("CREATE TABLE fresh (a int)")


async def connect_full(stored: Stored) -> Session:
    login = stored.driver.login(stored.deployment, DatabaseRole.WRITER, 1)
    return await open_session(stored.address, login)


async def test_what_keeps_the_quota_is_no_part_of_a_tenants_schema(
    stored: Stored, connect: Connect
) -> None:
    session = await connect()
    await stored.fill()
    tables = {row["name"] for row in await session.fetch(ALL_TABLES, 100)}
    assert tables == {"kept", "spared", "parted", "seen", "through"}
    login = stored.driver.login(stored.deployment, DatabaseRole.WRITER, 1)
    dump = await asyncio.create_subprocess_exec(
        str(postgres_process.binaries() / "pg_dump"),
        *("-h", stored.address.host, "-p", str(stored.address.port), "-U", login.user, "app"),
        env={"PGPASSWORD": login.password},
        stdout=asyncio.subprocess.PIPE,
    )
    content, _ = await dump.communicate()
    assert dump.returncode == 0
    assert b"EVENT TRIGGER" not in content
    assert b"CREATE SCHEMA" not in content
