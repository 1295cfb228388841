"""Statements on a real server: break-outs, leaks between calls, caps, types, lost servers."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from deploy.local.ports import free_ports
from deploy.local.postgres import MeshPostgres
from services.app_proxy.database.catalogue import Catalogue
from services.app_proxy.database.executor import Executor, Owner
from services.app_proxy.database.failures import Failure, StatementError
from services.app_proxy.database.pools import Pools, open_pools
from services.app_proxy.database.results import Caps, Result
from services.app_proxy.database.roles import Address, Role
from services.app_proxy.database.sessions import PoolLimits
from services.app_proxy.settings import Settings
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.local import remove_home
from services.provisioner.drivers.postgres_process import Blueprint
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, new_deployment_id, random_text

CAPS = Caps(rows=100, size=50_000, wire=2_000_000, seconds=2.0)
BY_DEFAULT = Settings().caps()
LIMITS = PoolLimits(size=3, most=4, idle_seconds=30.0, wait_seconds=1.0)
_PASSWORD = "correct horse"
_SETUP = """
GRANT ALL ON SCHEMA public TO writer;
GRANT USAGE ON SCHEMA public TO reader;
ALTER DEFAULT PRIVILEGES FOR ROLE writer GRANT SELECT ON TABLES TO reader;
"""
_PATIENCE_SECONDS = 30.0


@dataclass
class OneServer:
    """A double of provisioner's GetDatabaseConnection: one server's database for every key."""

    port: int
    database: str
    asked: list[tuple[str, Role]] = field(default_factory=list)
    wake: Callable[[], Any] | None = None

    async def address(self, key: str, role: Role) -> Address:
        self.asked.append((key, role))
        if self.wake is not None:
            await self.wake()
        return Address("127.0.0.1", self.port, self.database, role.value, _PASSWORD)


@dataclass(frozen=True)
class Setting:
    server: OneServer
    pools: Pools
    executor: Executor
    owner: Owner

    async def query(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        return list((await self.executor.query(self.owner, sql, params)).rows)

    async def execute(self, sql: str, *params: Any) -> list[dict[str, Any]]:
        return list((await self.executor.execute(self.owner, sql, params)).rows)

    async def value(self, sql: str, *params: Any) -> Any:
        (row,) = await self.query(sql, *params)
        (value,) = row.values()
        return value

    async def failure(self, sql: str, *params: Any, writes: bool = False) -> Failure:
        with pytest.raises(StatementError) as caught:
            await (self.execute if writes else self.query)(sql, *params)
        return caught.value.failure


@asynccontextmanager
async def a_setting(
    server: OneServer, caps: Caps = CAPS, limits: PoolLimits = LIMITS
) -> AsyncIterator[Setting]:
    async with open_pools(server, limits) as pools:
        owner = Owner(new_deployment_id(), "a key")
        yield Setting(server, pools, Executor(pools, caps), owner)


@pytest.fixture(scope="module")
async def server(postgres: MeshPostgres) -> OneServer:
    name = f"deployment_{random_text(6)}"
    superuser = await postgres.connect()
    for role in Role:
        known = await superuser.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role.value)
        verb = "ALTER" if known else "CREATE"
        await superuser.execute(f"{verb} ROLE {role.value} LOGIN PASSWORD '{_PASSWORD}'")
    await superuser.execute(f"CREATE DATABASE {name}")
    await superuser.execute(f"GRANT ALL ON DATABASE {name} TO reader, writer")
    await superuser.close()
    inside = await postgres.connect(name)
    await inside.execute(_SETUP)
    await inside.close()
    return OneServer(postgres.port, name)


@pytest.fixture
async def db(server: OneServer) -> AsyncIterator[Setting]:
    async with a_setting(server) as setting:
        await setting.execute("DROP TABLE IF EXISTS notes")
        await setting.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
        yield setting


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO notes VALUES (1, 'x')",
        "CREATE TABLE other ()",
        "WITH new AS (INSERT INTO notes VALUES (1, 'x') RETURNING 1) SELECT * FROM new",
        "DO $$ BEGIN INSERT INTO notes VALUES (1, 'x'); END $$",
        "SELECT nextval('missing')",
        "COMMENT ON TABLE notes IS 'x'",
        "TRUNCATE notes",
        "EXPLAIN ANALYZE INSERT INTO notes VALUES (1, 'x')",
    ],
)
async def test_a_query_changes_nothing(db: Setting, sql: str) -> None:
    assert (await db.failure(sql)).code in {"25006", "42P01", "42501"}
    assert await db.value("SELECT count(*) FROM notes") == 0


async def test_a_refused_change_points_to_execute(db: Setting) -> None:
    failure = await db.failure("INSERT INTO notes VALUES (1, 'x')")
    assert failure.code == "25006"
    assert failure.hint is not None
    assert "execute" in failure.hint


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1; SELECT 2",
        "SELECT 1; INSERT INTO notes VALUES (1, 'x')",
        "COMMIT; INSERT INTO notes VALUES (1, 'x')",
        "; COMMIT; INSERT INTO notes VALUES (1, 'x')",
        "SELECT 1; /* */ COMMIT",
        "SELECT set_config('transaction_read_only', 'off', false)",
        "SELECT set_config('transaction_read_only', 'off', true)",
        "DO $$ BEGIN COMMIT; END $$",
        "DO $$ BEGIN SET TRANSACTION READ WRITE; END $$",
        "DO $$ BEGIN PERFORM set_config('transaction_read_only', 'off', false); END $$",
        "SELECT set_config('role', 'postgres', false)",
        "SELECT set_config('session_authorization', 'postgres', false)",
        "DO $$ BEGIN SET ROLE writer; END $$",
    ],
)
async def test_no_statement_leaves_its_read_only_transaction(db: Setting, sql: str) -> None:
    await db.failure(sql)
    assert await db.value("SELECT current_user") == "reader"
    assert await db.value("SHOW transaction_read_only") == "on"
    assert (await db.failure("INSERT INTO notes VALUES (1, 'x')")).code == "25006"


async def test_a_failed_statement_leaves_nothing_half_done(db: Setting) -> None:
    failure = await db.failure(
        "INSERT INTO notes SELECT i, 'x' FROM generate_series(-3, 3) i WHERE 1 / i < 9",
        writes=True,
    )
    assert failure.code == "22012"
    assert await db.value("SELECT count(*) FROM notes") == 0


async def test_a_deferred_constraint_fails_the_call_that_broke_it(db: Setting) -> None:
    await db.execute("DROP TABLE IF EXISTS tree")
    await db.execute(
        "CREATE TABLE tree (id int PRIMARY KEY,"
        " up int REFERENCES tree DEFERRABLE INITIALLY DEFERRED)"
    )
    failure = await db.failure("INSERT INTO tree VALUES (1, 99)", writes=True)
    assert failure.code == "23503"
    assert await db.value("SELECT count(*) FROM tree") == 0


@pytest.mark.parametrize(
    ("leave", "look", "expected"),
    [
        (
            "SELECT set_config('search_path', 'nowhere', false)",
            "SHOW search_path",
            '"$user", public',
        ),
        ("SELECT set_config('statement_timeout', '0', false)", "SHOW statement_timeout", "2s"),
        ("SELECT set_config('TimeZone', 'Asia/Tokyo', false)", "SHOW TimeZone", "UTC"),
        (
            "SELECT set_config('my.secret', 'x', false)",
            "SELECT current_setting('my.secret', true)",
            "",
        ),
        (
            "SELECT pg_advisory_lock(7)",
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()",
            0,
        ),
        ("SELECT 1", "SELECT count(*) FROM pg_prepared_statements WHERE from_sql", 0),
        ("SELECT 1", "SELECT count(*) FROM pg_cursors WHERE is_holdable", 0),
        ("SELECT 1", "SELECT count(*) FROM pg_listening_channels()", 0),
    ],
)
async def test_nothing_of_a_session_leaks_into_the_next_call(
    server: OneServer, leave: str, look: str, expected: Any
) -> None:
    alone = PoolLimits(size=1, most=4, idle_seconds=30.0, wait_seconds=1.0)
    async with a_setting(server, limits=alone) as setting:
        backend = await setting.value("SELECT pg_backend_pid()")
        await setting.query(leave)
        assert await setting.value("SELECT pg_backend_pid()") == backend
        assert await setting.value(look) in (expected, expected or None)


async def test_temporary_tables_and_roles_do_not_outlive_a_call(server: OneServer) -> None:
    alone = PoolLimits(size=1, most=4, idle_seconds=30.0, wait_seconds=1.0)
    async with a_setting(server, limits=alone) as setting:
        await setting.execute("CREATE TEMP TABLE mine AS SELECT 1 AS x")
        assert (await setting.failure("SELECT * FROM mine", writes=True)).code == "42P01"
        await setting.execute("DO $$ BEGIN EXECUTE 'PREPARE left_over AS SELECT 1'; END $$")
        rows = await setting.execute("SELECT name FROM pg_prepared_statements WHERE from_sql")
        assert rows == []


@pytest.mark.promise("P-02")
async def test_pools_of_two_deployments_and_roles_share_no_connection(server: OneServer) -> None:
    async with a_setting(server) as setting:
        other = Owner(new_deployment_id(), "another key")
        mine = await setting.value("SELECT pg_backend_pid()")
        result = await setting.executor.query(other, "SELECT pg_backend_pid()", [])
        assert result.rows[0]["pg_backend_pid"] != mine
        assert setting.server.asked[-2:] == [("a key", Role.READER), ("another key", Role.READER)]
        assert setting.pools.open_count == 2


async def test_a_huge_result_is_cut_and_says_so(db: Setting) -> None:
    result = await db.executor.query(
        db.owner, "SELECT i, repeat('x', 100) FROM generate_series(1, 300000) i", []
    )
    assert len(result.rows) == CAPS.rows
    assert result.cut == "only the first 100 rows are returned"
    wide = await db.executor.query(
        db.owner, "SELECT repeat('x', 20000) FROM generate_series(1, 100000) i", []
    )
    assert len(wide.rows) == 2
    assert wide.cut is not None
    assert "50000 bytes" in wide.cut


@pytest.mark.promise("P-38")
async def test_one_enormous_row_costs_the_connection_not_our_memory(db: Setting) -> None:
    await db.value("SELECT 1")
    asked = len(db.server.asked)
    failure = await db.failure("SELECT repeat('x', 100000000)")
    assert failure.code == "54000"
    assert await db.value("SELECT 1") == 1
    assert len(db.server.asked) == asked


# Statements of a few words, that a key with db:read may send.
COSTLY = [
    "SELECT ('[' || rtrim(repeat('[1],', 3500000), ',') || ']')::json",
    "SELECT ('[' || rtrim(repeat('[1],', 60000), ',') || ']')::json",
    "SELECT ('[' || rtrim(repeat('1e1,', 60000), ',') || ']')::json",
    "SELECT json_agg(json_build_object('a', g, 'b', array[g, g])) FROM generate_series(1, 20000) g",
    "SELECT array_agg(g) FROM generate_series(1, 100000) g",
    "SELECT array_agg(1) FROM generate_series(1, 250000) g",
    "SELECT array_agg('x'::text) FROM generate_series(1, 100000) g",
    "SELECT array_agg('x'::name) FROM generate_series(1, 50000) g",
    "SELECT array_agg(ARRAY[1]) FROM generate_series(1, 100000) g",
    "SELECT array_fill(NULL::int, ARRAY[100000])",
    f"SELECT {', '.join(['1.5::numeric AS a'] * 1600)} FROM generate_series(1, 50)",
    f"SELECT {', '.join(['NULL'] * 1600)} FROM generate_series(1, 100000)",
    "SELECT g, g, g, g, g, g, g, g FROM generate_series(1, 2000000) g",
    "SELECT repeat('x', (g % 10) * 30000) FROM generate_series(1, 20000) g",
]
# Of processor time, so that a busy machine does not count: unbounded it is seconds.
_MOST_STALL_SECONDS = 1.0


async def stalls(until: asyncio.Task[Any]) -> float:
    """Returns the most processor time of one turn of the event loop until the task is done."""
    longest, last = 0.0, time.thread_time()
    while not until.done():
        await asyncio.sleep(0)
        longest, last = max(longest, time.thread_time() - last), time.thread_time()
    return longest


@pytest.mark.promise("P-38")
@pytest.mark.parametrize("sql", COSTLY)
@pytest.mark.parametrize("tool", ["query", "execute"])
async def test_what_a_result_costs_is_bounded_whatever_is_asked(
    server: OneServer, sql: str, tool: str
) -> None:
    async with a_setting(server, BY_DEFAULT) as setting:
        run = getattr(setting.executor, tool)
        await setting.execute("SELECT 1")
        calls = asyncio.gather(*(tried(run, setting.owner, sql) for _ in range(3)))
        stall = await stalls(asyncio.ensure_future(calls))
        for outcome in await calls:
            if isinstance(outcome, Failure):
                assert outcome.code in {"54000", "57014"}
            else:
                assert outcome.cut is not None
                assert len(json.dumps(list(outcome.rows))) <= 2 * BY_DEFAULT.size
                assert values_in(list(outcome.rows)) <= 2 * BY_DEFAULT.values
        assert stall < _MOST_STALL_SECONDS
        assert (await setting.executor.query(setting.owner, "SELECT 1 AS x", [])).rows == [{"x": 1}]


async def tried(run: Any, owner: Owner, sql: str) -> Result | Failure:
    try:
        result: Result = await run(owner, sql, [])
    except StatementError as error:
        return error.failure
    return result


def values_in(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(values_in(item) for item in inner)


async def test_a_change_is_run_to_its_end_without_its_rows(server: OneServer) -> None:
    async with a_setting(server, BY_DEFAULT) as setting:
        await setting.execute("DROP SEQUENCE IF EXISTS calls")
        await setting.execute("CREATE SEQUENCE calls")
        result = await setting.executor.execute(
            setting.owner,
            "SELECT nextval('calls'), repeat('x', 1000) FROM generate_series(1, 50000)",
            [],
        )
        assert result.cut is not None
        assert result.affected == 50_000
        assert await setting.execute("SELECT last_value FROM calls") == [{"last_value": 50_000}]


async def test_rows_that_suddenly_grow_are_cut_not_refused(db: Setting) -> None:
    result = await db.executor.execute(
        db.owner,
        "SELECT g, repeat('x', CASE WHEN g <= 20 THEN 10 ELSE 30000 END)"
        " FROM generate_series(1, 60) g",
        [],
    )
    assert result.cut is not None
    assert 20 <= len(result.rows) < 60
    assert result.affected == 60


async def test_a_flood_of_notices_is_cut(db: Setting) -> None:
    failure = await db.failure(
        "DO $$ BEGIN LOOP RAISE NOTICE '%', repeat('x', 1000); END LOOP; END $$"
    )
    assert failure.code in {"54000", "57014"}
    assert await db.value("SELECT 1") == 1


async def test_a_change_is_done_whole_when_its_rows_are_cut(db: Setting) -> None:
    result = await db.executor.execute(
        db.owner, "INSERT INTO notes SELECT i, 'x' FROM generate_series(1, 5000) i RETURNING id", []
    )
    assert len(result.rows) == CAPS.rows
    assert result.affected == 5000
    assert await db.value("SELECT count(*) FROM notes") == 5000


async def test_a_statement_ends_after_its_time(db: Setting) -> None:
    failure = await db.failure("SELECT pg_sleep(60)")
    assert failure.code == "57014"


@pytest.mark.promise("P-02")
@pytest.mark.parametrize(
    "sql",
    [
        # Raises its own timeout for the rows that are fetched later.
        """
        SELECT set_config('statement_timeout', '0', false), pg_sleep(0.5)
        FROM generate_series(1, 100)
        """,
        # Catches its own cancellation.
        """
        DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(60);
        EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$
        """,
    ],
)
async def test_no_statement_can_outlast_its_time(db: Setting, sql: str) -> None:
    backend = await db.value("SELECT pg_backend_pid()")
    failure = await db.failure(sql)
    assert failure.code == "57014"
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while await db.value(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid = $1"
            " AND pid <> pg_backend_pid()",
            backend,
        ):
            await asyncio.sleep(0.05)


async def test_all_connections_in_use_is_said_and_passes(server: OneServer) -> None:
    limits = PoolLimits(size=1, most=4, idle_seconds=30.0, wait_seconds=0.2)
    async with a_setting(server, limits=limits) as setting:
        slow = asyncio.create_task(setting.query("SELECT pg_sleep(1)"))
        onlooker = Owner(new_deployment_id(), "k")
        seen: list[Any] = []
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not seen:
                result = await setting.executor.query(
                    onlooker, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'", []
                )
                seen.extend(result.rows)
        with pytest.raises(UnavailableError):
            await setting.query("SELECT 1")
        await slow
        assert await setting.value("SELECT 1") == 1


async def test_a_caller_who_leaves_gives_the_connection_back_clean(server: OneServer) -> None:
    limits = PoolLimits(size=1, most=4, idle_seconds=30.0, wait_seconds=3.0)
    async with a_setting(server, limits=limits) as setting:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await setting.query("SELECT 'not yours', pg_sleep(1)")
            assert await setting.value("SELECT 'mine'") == "mine"


async def test_idle_pools_close_and_the_number_of_pools_is_bounded(server: OneServer) -> None:
    limits = PoolLimits(size=1, most=2, idle_seconds=0.4, wait_seconds=1.0)
    async with a_setting(server, limits=limits) as setting:
        for _ in range(4):
            owner = Owner(new_deployment_id(), "k")
            await setting.executor.query(owner, "SELECT 1", [])
            assert setting.pools.open_count <= 2
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while setting.pools.open_count:
                await asyncio.sleep(0.05)


ROUND_TRIPS = [
    ("int4", 5, 5),
    ("int4", "5", 5),
    ("int4", 5.0, 5),
    ("int8", "9223372036854775807", "9223372036854775807"),
    ("int8", 2**53 - 1, 2**53 - 1),
    ("numeric", "1.50", "1.50"),
    ("numeric", 1.5, "1.5"),
    ("numeric", "NaN", "NaN"),
    ("float8", "NaN", "NaN"),
    ("float8", "-Infinity", "-Infinity"),
    ("float8", 0.1, 0.1),
    ("bool", True, True),
    ("bool", "false", False),
    ("text", "ünïcode\n'\"\\", "ünïcode\n'\"\\"),
    ("text", 5, "5"),
    ("text", "'; DROP TABLE notes; --", "'; DROP TABLE notes; --"),
    ("timestamptz", "2024-05-01T12:00:00Z", "2024-05-01T12:00:00+00:00"),
    ("timestamptz", "2024-05-01T12:00:00+05:30", "2024-05-01T06:30:00+00:00"),
    ("timestamptz", "infinity", "infinity"),
    ("timestamp", "2024-05-01 12:00:00.5", "2024-05-01T12:00:00.5"),
    ("timestamp", "294276-12-31T23:59:59", "294276-12-31T23:59:59"),
    ("date", "2024-02-29", "2024-02-29"),
    ("date", "0044-03-15 BC", "0044-03-15 BC"),
    ("time", "24:00:00", "24:00:00"),
    ("timetz", "12:00:00+02", "12:00:00+02"),
    ("interval", "P1Y2M3DT4H5M6.7S", "P1Y2M3DT4H5M6.7S"),
    ("interval", "1 day", "P1D"),
    ("uuid", "6ecd8c99-4036-403d-bf84-cf8400f67836", "6ecd8c99-4036-403d-bf84-cf8400f67836"),
    ("bytea", "\\xdeadbeef", "\\xdeadbeef"),
    ("json", {"a": [1, None, "x"]}, {"a": [1, None, "x"]}),
    ("jsonb", {"a": 1.5}, {"a": 1.5}),
    ("jsonb", '{"a": 1}', {"a": 1}),
    ("jsonb", "text", "text"),
    ("jsonb", [1, 2], [1, 2]),
    ("jsonb", 5, 5),
    ("jsonb", None, None),
    ("int4[]", [1, "2", None], [1, 2, None]),
    ("text[]", ["a", 'b"c', None, "{}"], ["a", 'b"c', None, "{}"]),
    ("numeric[]", [1.5, "2.50"], ["1.5", "2.50"]),
    ("timestamptz[]", ["2024-05-01T00:00:00Z"], ["2024-05-01T00:00:00+00:00"]),
    ("int4[]", [[1, 2], [3, 4]], [[1, 2], [3, 4]]),
    ("jsonb[]", [{"a": 1}], [{"a": 1}]),
    ("inet", "10.0.0.1/8", "10.0.0.1/8"),
    ("cidr", "10.0.0.0/8", "10.0.0.0/8"),
    ("macaddr", "08:00:2b:01:02:03", "08:00:2b:01:02:03"),
    ("bit(3)", "101", "101"),
    ("point", "(1,2)", "(1,2)"),
    ("money", "$1.50", "$1.50"),
    ("int4range", "[1,5)", "[1,5)"),
    ("tstzrange", "[2024-01-01,)", '["2024-01-01 00:00:00+00",)'),
    ("int4multirange", "{[1,3),[5,7)}", "{[1,3),[5,7)}"),
    ("tsvector", "'a' 'b'", "'a' 'b'"),
]


@pytest.mark.parametrize(("kind", "given", "expected"), ROUND_TRIPS)
async def test_json_values_reach_postgres_and_come_back(
    db: Setting, kind: str, given: Any, expected: Any
) -> None:
    found = await db.value(f"SELECT $1::{kind}", given)
    assert found == expected
    assert type(found) is type(expected)
    json.dumps(found, allow_nan=False)


async def test_a_tenants_own_types_come_back_also_after_they_change(db: Setting) -> None:
    for drop in ("TYPE IF EXISTS pair", "TYPE IF EXISTS mood", "DOMAIN IF EXISTS positive"):
        await db.execute(f"DROP {drop} CASCADE")
    await db.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
    await db.execute("CREATE TYPE pair AS (a int, b text)")
    await db.execute("CREATE DOMAIN positive AS int CHECK (value > 0)")
    assert await db.value("SELECT $1::mood", "ok") == "ok"
    assert await db.value("SELECT $1::mood[]", ["sad", "ok"]) == ["sad", "ok"]
    assert await db.value("SELECT $1::pair", "(1,x)") == "(1,x)"
    assert await db.value("SELECT ARRAY[(1,'x')::pair]") == ["(1,x)"]
    assert await db.value("SELECT (1, 2.5, 'x')") == "(1,2.5,x)"
    assert await db.value("SELECT $1::positive", "5") == 5
    assert (await db.failure("SELECT $1::positive", -5)).code == "23514"
    await db.execute("ALTER TYPE pair ADD ATTRIBUTE c int")
    assert await db.value("SELECT (1, 'x', 3)::pair") == "(1,x,3)"
    await db.execute("DROP TYPE mood CASCADE")
    await db.execute("CREATE TYPE mood AS ENUM ('new')")
    assert await db.value("SELECT 'new'::mood") == "new"


@pytest.mark.parametrize(
    ("sql", "params", "code"),
    [
        ("SELECT $1::int", ["five"], "22P02"),
        ("SELECT $1::int", [{"a": 1}], "22000"),
        ("SELECT $1::int", [True], "22000"),
        ("SELECT $1::int", [1.5], "22P02"),
        ("SELECT $1::int2", [70_000], "22003"),
        ("SELECT $1::timestamptz", ["yesterday-ish"], "22007"),
        ("SELECT $1::timestamptz", [5], "22000"),
        ("SELECT $1::uuid", ["x"], "22P02"),
        ("SELECT $1::text", ["a\0b"], "22021"),
        ("SELECT $1::text", ["\ud800"], "22000"),
        ("SELECT $1::int[]", ["{1,2}"], "22000"),
        ("SELECT $1::int", [], "08P01"),
        ("SELECT 1", [1], "08P01"),
        ("SELEC 1", [], "42601"),
        ("SELECT * FROM missing", [], "42P01"),
        ("SELECT missing", [], "42703"),
        ("VACUUM", [], "25001"),
    ],
)
async def test_what_is_wrong_is_said_with_sqlstate(
    db: Setting, sql: str, params: list[Any], code: str
) -> None:
    failure = await db.failure(sql, *params)
    assert failure.code == code
    assert failure.message
    assert "Traceback" not in failure.message


@pytest.mark.promise("P-02")
@pytest.mark.parametrize("code", ["08006", "08P01", "57P01", "57P02", "57P03", "28P01", "3D000"])
@pytest.mark.parametrize("writes", [False, True])
async def test_no_statement_can_pretend_that_the_server_is_lost(
    server: OneServer, code: str, *, writes: bool
) -> None:
    async with a_setting(server) as setting:
        backend = await setting.value("SELECT pg_backend_pid()")
        await setting.execute("SELECT 1")
        asked = len(server.asked)
        failure = await setting.failure(
            f"DO $$ BEGIN RAISE EXCEPTION USING message = 'm', errcode = '{code}'; END $$",
            writes=writes,
        )
        assert (failure.code, failure.message) == (code, "m")
        assert failure.retry_after is None
        assert await setting.value("SELECT pg_backend_pid()") == backend
        assert len(server.asked) == asked


async def test_an_error_tells_its_position(db: Setting) -> None:
    assert (await db.failure("SELECT * FROM missing")).position == 15


async def test_the_schema_is_read_and_its_fingerprint_follows_each_change(
    server: OneServer,
) -> None:
    async with a_setting(server) as setting:
        catalogue = Catalogue(setting.executor)
        await setting.execute("DROP SCHEMA IF EXISTS shop CASCADE")
        await setting.execute("CREATE SCHEMA shop")
        await setting.execute("GRANT USAGE ON SCHEMA shop TO reader")
        await setting.execute("CREATE TABLE shop.customers (id int PRIMARY KEY)")
        await setting.execute(
            "CREATE TABLE shop.orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
            " customer int NOT NULL REFERENCES shop.customers, total numeric(10,2) DEFAULT 0,"
            " double numeric GENERATED ALWAYS AS (total * 2) STORED, UNIQUE (customer, total))"
        )
        table = await catalogue.table(setting.owner, "orders", None)
        assert table is not None
        described = table.as_json()
        columns = {column["name"]: column for column in described["columns"]}
        assert columns["total"]["type"] == "numeric(10,2)"
        assert columns["total"]["default"] == "0"
        assert columns["id"]["generated"] == "always"
        assert columns["double"]["generated"] == "stored"
        assert not columns["customer"]["nullable"]
        assert {key["kind"] for key in described["keys"]} == {"primary", "foreign", "unique"}
        assert len(described["indexes"]) == 2
        before = (await catalogue.schema(setting.owner)).fingerprint
        assert (await catalogue.schema(setting.owner)).fingerprint == before
        for change in (
            "COMMENT ON TABLE shop.orders IS 'What was bought'",
            "COMMENT ON COLUMN shop.orders.total IS 'In euros'",
            "ALTER TABLE shop.orders ADD COLUMN note text",
            "ALTER TABLE shop.orders RENAME COLUMN note TO remark",
            "ALTER TABLE shop.orders ALTER COLUMN remark SET DEFAULT 'x'",
            "ALTER TABLE shop.orders ADD CHECK (total >= 0)",
            "CREATE INDEX ON shop.orders (remark)",
            "CREATE VIEW shop.cheap AS SELECT id FROM shop.orders WHERE total < 1",
            "ALTER TABLE shop.orders RENAME TO sales",
            "DROP VIEW shop.cheap",
        ):
            await setting.execute(change)
            after = await catalogue.schema(setting.owner)
            assert after.fingerprint != before, change
            before = after.fingerprint
        names = {table.summary.name for table in after.tables}
        assert {"sales", "customers"} <= names
        assert await catalogue.table(setting.owner, "orders", None) is None
        assert await catalogue.table(setting.owner, "sales", "public") is None


@dataclass
class OwnServer:
    """A server that a test may kill."""

    directory: Path
    port: int

    async def start(self) -> None:
        await postgres_process.start(self.directory, self.port, {"fsync": "off"})

    async def kill(self) -> None:
        running = postgres_process.running(self.directory)
        assert running is not None
        os.kill(running.pid, signal.SIGKILL)
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while postgres_process.running(self.directory) is not None:
                await asyncio.sleep(0.01)


@pytest.fixture
async def own_server(home: Path) -> AsyncIterator[OwnServer]:
    folder = postgres_process.reachable_home(home / f"own-{random_text(6)}")
    folder.mkdir(parents=True, exist_ok=True)
    roles = "".join(f"CREATE ROLE {role.value} LOGIN PASSWORD '{_PASSWORD}';\n" for role in Role)
    blueprint = Blueprint(
        "postgres",
        "unused",
        "host all all 127.0.0.1/32 scram-sha-256\n",
        [("postgres", roles + _SETUP)],
    )
    template = await postgres_process.ensure_template(folder, blueprint)
    own = OwnServer(folder / "server", free_ports(1)[0])
    await postgres_process.clone(template, own.directory)
    await own.start()
    yield own
    await remove_home(folder)


@pytest.mark.promise("P-12")
async def test_a_killed_server_is_woken_by_the_next_query(own_server: OwnServer) -> None:
    server = OneServer(own_server.port, "postgres", wake=own_server.start)
    async with a_setting(server) as setting:
        await setting.execute("CREATE TABLE kept AS SELECT 42 AS x")
        assert await setting.value("SELECT x FROM kept") == 42
        await own_server.kill()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            assert await setting.value("SELECT x FROM kept") == 42
        # A session can outlive its server for a moment, and may have been what answered.
        await own_server.start()
        await own_server.kill()
        async with asyncio.timeout(_PATIENCE_SECONDS):
            await setting.execute("INSERT INTO kept VALUES (43)")
        assert await setting.value("SELECT count(*) FROM kept") == 2


async def test_a_change_is_not_sent_twice_when_the_server_dies_under_it(
    own_server: OwnServer,
) -> None:
    server = OneServer(own_server.port, "postgres", wake=own_server.start)
    async with a_setting(server) as setting:
        await setting.execute("CREATE TABLE once (x int)")
        change = asyncio.create_task(
            setting.failure("INSERT INTO once SELECT 1 FROM pg_sleep(1.5)", writes=True)
        )
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while not await setting.execute(
                "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            ):
                await asyncio.sleep(0.02)
        await own_server.kill()
        failure = await change
        assert failure.code == "08006"
        assert failure.retry_after is not None
        assert await setting.value("SELECT count(*) FROM once") == 0


async def test_a_server_that_stays_away_is_said_with_a_hint(server: OneServer) -> None:
    nowhere = OneServer(free_ports(1)[0], server.database)
    async with a_setting(nowhere) as setting:
        failure = await setting.failure("SELECT 1")
        assert failure.code == "57P03"
        assert failure.retry_after == 1.0
        assert nowhere.asked == [("a key", Role.READER)] * 2


async def test_a_changed_password_is_asked_for_anew(
    server: OneServer, postgres: MeshPostgres
) -> None:
    wrong = OneServer(server.port, server.database)
    passwords = iter(["stale", _PASSWORD])

    class Rotated:
        async def address(self, key: str, role: Role) -> Address:
            found = await wrong.address(key, role)
            return Address(found.host, found.port, found.database, found.user, next(passwords))

    async with open_pools(Rotated(), LIMITS) as pools:
        executor = Executor(pools, CAPS)
        result = await executor.query(Owner(DeploymentId("dep_x"), "k"), "SELECT 1 AS x", [])
        assert result.rows == [{"x": 1}]


def test_the_driver_still_has_the_parts_that_are_used_of_it() -> None:
    assert hasattr(asyncpg.Connection, "_introspect_types")
    assert {"_transport", "_protocol"} <= set(asyncpg.Connection.__slots__)
