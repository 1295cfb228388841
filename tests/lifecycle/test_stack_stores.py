"""The mesh's own stores, attacked as one of its services that was taken over."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import product
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from deploy.local import postgres
from deploy.local.postgres import MeshPostgres, mesh_postgres
from deploy.local.valkey import PREFIXES, ValkeyServer, valkey_server
from services.provisioner.drivers import postgres_process

DATABASES = ("auth", "ratelimit", "provisioner", "app_proxy")

As = Callable[[str], "AbstractAsyncContextManager[Redis]"]


@pytest.fixture(scope="module")
async def own_valkey(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ValkeyServer]:
    async with valkey_server(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def as_user(own_valkey: ValkeyServer) -> As:
    @asynccontextmanager
    async def connected(user: str) -> AsyncIterator[Redis]:
        password = own_valkey.password_files[user].read_text()
        async with Redis(
            host=own_valkey.host, port=own_valkey.port, username=user, password=password
        ) as client:
            yield client

    return connected


@pytest.fixture(scope="module")
async def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeshPostgres]:
    async with mesh_postgres(tmp_path_factory.mktemp("mesh"), settings={"fsync": "off"}) as server:
        for service in DATABASES:
            await server.create_service(service)
        yield server


async def said(client: Redis, *command: str) -> None:
    """Sends the command just as it is written."""
    await client.execute_command(*command)  # type: ignore[no-untyped-call]


async def login(
    server: MeshPostgres, user: str, database: str
) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(
        host=server.host,
        port=server.port,
        user=user,
        password=postgres.password_file(server.home, user).read_text(),
        database=database,
    )


@pytest.mark.promise("P-34")
@pytest.mark.parametrize("user", PREFIXES)
async def test_a_service_uses_keys_under_its_own_prefix(as_user: As, user: str) -> None:
    key = f"{PREFIXES[user]}own"
    script = "redis.call('TIME') return redis.call('INCRBY', KEYS[1], ARGV[1])"
    async with as_user(user) as client:
        await client.set(key, "1", ex=60)
        assert await client.eval(script, 1, key, "4") == 5
        async with client.pipeline(transaction=True) as pipeline:
            pipeline.get(key)
            pipeline.delete(key)
            assert await pipeline.execute() == [b"5", 1]


@pytest.mark.promise("P-34")
@pytest.mark.parametrize(
    ("user", "other"), [("ratelimit", "app_proxy"), ("app_proxy", "ratelimit")]
)
@pytest.mark.parametrize(
    "command",
    [
        ("GET", "{key}"),
        ("SET", "{key}", "stolen"),
        ("DEL", "{key}"),
        ("EXISTS", "{key}"),
        ("TTL", "{key}"),
        ("DUMP", "{key}"),
        ("OBJECT", "ENCODING", "{key}"),
        ("RENAME", "{key}", "{own}"),
        ("COPY", "{key}", "{own}"),
        ("EVAL", "return redis.call('GET', '{key}')", "0"),
        ("EVAL", "return redis.call('GET', KEYS[1])", "1", "{key}"),
        ("SUBSCRIBE", "{key}"),
        ("PUBLISH", "{key}", "forged"),
        ("PSUBSCRIBE", "*"),
    ],
)
async def test_no_service_reaches_anothers_keys(
    as_user: As, user: str, other: str, command: tuple[str, ...]
) -> None:
    key, own = f"{PREFIXES[other]}secret", f"{PREFIXES[user]}own"
    async with as_user(other) as client:
        await client.set(key, "theirs")
    async with as_user(user) as client:
        with pytest.raises((NoPermissionError, ResponseError), match=r"No permissions|ACL failure"):
            await said(client, *(part.format(key=key, own=own) for part in command))
    async with as_user(other) as client:
        assert await client.get(key) == b"theirs"


@pytest.mark.promise("P-34")
@pytest.mark.parametrize("user", PREFIXES)
@pytest.mark.parametrize(
    "command",
    [
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "DBSIZE",
        "FLUSHALL",
        "FLUSHDB",
        "SWAPDB 0 0",
        "SORT x",
        "INFO",
        "MONITOR",
        "CONFIG GET *",
        "CONFIG SET requirepass x",
        "ACL LIST",
        "ACL SETUSER x",
        "CLIENT LIST",
        "CLIENT KILL TYPE normal",
        "PUBSUB CHANNELS",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
        "FUNCTION LIST",
        "FUNCTION FLUSH",
        "MODULE LIST",
        "REPLICAOF no one",
        "SAVE",
        "SHUTDOWN",
        "LATENCY DOCTOR",
        "SLOWLOG GET",
    ],
)
async def test_no_service_can_enumerate_erase_or_administrate(
    as_user: As, user: str, command: str
) -> None:
    async with as_user(user) as client:
        with pytest.raises(NoPermissionError):
            await said(client, *command.split())


@pytest.mark.promise("P-34")
@pytest.mark.parametrize("user", PREFIXES)
async def test_a_script_enumerates_nothing_either(as_user: As, user: str) -> None:
    async with as_user(user) as client:
        for command in ("'KEYS', '*'", "'SCAN', '0'", "'RANDOMKEY'", "'DBSIZE'"):
            with pytest.raises((NoPermissionError, ResponseError), match="ACL failure"):
                await client.eval(f"return redis.call({command})", 0)


@pytest.mark.promise("P-34")
async def test_without_a_password_nobody_is_served(own_valkey: ValkeyServer) -> None:
    async with Redis(host=own_valkey.host, port=own_valkey.port) as client:
        with pytest.raises(RedisError, match="authenticated"):
            await client.get("limit:x")


async def test_valkey_knows_its_passwords_by_their_digest_alone(own_valkey: ValkeyServer) -> None:
    users = (own_valkey.password_files["operator"].parent / "users.acl").read_text()
    for file in own_valkey.password_files.values():
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.read_text() not in users


async def test_what_valkey_was_told_survives_its_restart(tmp_path: Path) -> None:
    for expected in (None, b"1"):
        async with valkey_server(tmp_path) as server:
            password = server.password_files["ratelimit"].read_text()
            async with Redis(
                host=server.host, port=server.port, username="ratelimit", password=password
            ) as client:
                assert await client.get("limit:kept") == expected
                await client.set("limit:kept", "1")


@pytest.mark.promise("P-35")
@pytest.mark.parametrize("user", DATABASES)
async def test_a_service_logs_in_to_its_own_database(own_postgres: MeshPostgres, user: str) -> None:
    connection = await login(own_postgres, user, user)
    try:
        await connection.execute("CREATE TABLE mine (id int)")
        for role in (f"{user}_tenant", f"{user}_service"):
            await connection.execute(f"SET ROLE {role}")
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute("SELECT id FROM mine")
            await connection.execute("RESET ROLE")
        await connection.execute("DROP TABLE mine")
    finally:
        await connection.close()


@pytest.mark.promise("P-35")
@pytest.mark.parametrize(
    ("user", "database"),
    [
        pair
        for pair in product(DATABASES, (*DATABASES, "postgres", "template1"))
        if len({*pair}) > 1
    ],
)
async def test_no_service_logs_in_to_anothers_database(
    own_postgres: MeshPostgres, user: str, database: str
) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="permission denied for database"):
        await login(own_postgres, user, database)


@pytest.mark.promise("P-35")
@pytest.mark.parametrize(
    "attack",
    [
        "CREATE DATABASE stolen",
        "CREATE ROLE thief LOGIN",
        "ALTER ROLE auth SUPERUSER",
        "ALTER ROLE auth CREATEROLE",
        "GRANT provisioner TO auth",
        "SET ROLE provisioner",
        "SET ROLE provisioner_service",
        "SET SESSION AUTHORIZATION postgres",
        "COPY (SELECT 1) TO PROGRAM 'id'",
        "COPY (SELECT 1) TO '/tmp/out'",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT rolpassword FROM pg_authid",
        "CREATE EXTENSION dblink",
        "ALTER SYSTEM SET fsync = off",
        "ALTER DATABASE provisioner OWNER TO auth",
        "DROP DATABASE provisioner",
    ],
)
async def test_a_service_cannot_raise_itself(own_postgres: MeshPostgres, attack: str) -> None:
    connection = await login(own_postgres, "auth", "auth")
    try:
        with pytest.raises(asyncpg.PostgresError) as refused:
            await connection.execute(attack)
    finally:
        await connection.close()
    assert refused.value.sqlstate in {"42501", "58P01", "0A000"}


@pytest.mark.promise("P-35")
async def test_a_wrong_password_opens_nothing(own_postgres: MeshPostgres) -> None:
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host=own_postgres.host,
            port=own_postgres.port,
            user="auth",
            password=postgres.password_file(own_postgres.home, "provisioner").read_text(),
            database="auth",
        )


async def test_making_a_service_twice_keeps_its_password(own_postgres: MeshPostgres) -> None:
    file = postgres.password_file(own_postgres.home, "auth")
    before = file.read_text()
    assert await own_postgres.create_service("auth") == file
    assert file.read_text() == before
    assert file.stat().st_mode & 0o777 == 0o600
    connection = await login(own_postgres, "auth", "auth")
    await connection.close()


async def test_no_password_stands_in_the_servers_log(own_postgres: MeshPostgres) -> None:
    log = (own_postgres.directory / postgres_process.LOG_NAME).read_text()
    for role in (*DATABASES, "postgres"):
        assert postgres.password_file(own_postgres.home, role).read_text() not in log
    assert "SCRAM-SHA-256$" not in log


async def test_nothing_is_left_of_a_server_that_was_removed(tmp_path: Path) -> None:
    async with mesh_postgres(tmp_path, settings={"fsync": "off"}) as server:
        directory = server.directory
        assert postgres_process.running(directory)
    assert postgres_process.running(directory) is None
    assert not directory.parent.exists()
