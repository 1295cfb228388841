"""Routes on real Postgres and Valkey: order of writes, refills, tombstones, tenants apart."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio
import redis.exceptions

import services.app_proxy.server
from deploy.local.ports import free_ports
from deploy.local.valkey import ValkeyServer
from services.app_proxy.route_cache import ValkeyRouteCache
from services.app_proxy.routes import Remembered, Route, RouteState
from services.app_proxy.server import NAME
from services.app_proxy.service import Routing
from services.app_proxy.store import RouteStore
from services.shared.errors import (
    AlreadyExistsError,
    InvalidFieldError,
    NotFoundError,
    UnavailableError,
)
from services.shared.ids import (
    TenantId,
    new_deployment_id,
    new_tenant_id,
    random_text,
)
from services.shared.postgres import Database, open_database
from services.shared.redis import Valkey, open_valkey
from services.shared.settings import ValkeySettings
from tests.databases import Databases
from tests.losable_valkey import losable_valkey
from tests.ratelimit_replicas import until

MIGRATIONS = Path(services.app_proxy.server.__file__).parent / "migrations"
TENANT, OTHER = new_tenant_id(), new_tenant_id()


@dataclass(frozen=True)
class Stores:
    database: Database
    rows: RouteStore
    valkey: Valkey
    cache: ValkeyRouteCache
    routing: Routing

    async def key(self, route: Route) -> bytes | str | None:
        return await self.valkey.get(f"deploy:route:{route.host}")


@asynccontextmanager
async def open_stores(
    databases: Databases, valkey: ValkeySettings, patience_seconds: float = 10.0
) -> AsyncIterator[Stores]:
    async with AsyncExitStack() as stack:
        settings = await databases.fresh(NAME)
        database = await stack.enter_async_context(open_database(settings, NAME, MIGRATIONS))
        client = await stack.enter_async_context(open_valkey(valkey))
        cache = ValkeyRouteCache(
            client,
            seconds=100,
            unknown_seconds=30,
            tombstone_seconds=60,
            patience_seconds=patience_seconds,
        )
        rows = RouteStore(database)
        yield Stores(database, rows, client, cache, Routing(rows, cache, "localhost"))


@pytest.fixture(scope="module")
async def stores(databases: Databases, valkey: ValkeyServer) -> AsyncIterator[Stores]:
    async with open_stores(databases, valkey_settings(valkey)) as opened:
        yield opened


def valkey_settings(server: ValkeyServer) -> ValkeySettings:
    return ValkeySettings(
        valkey_host=server.host,
        valkey_port=server.port,
        valkey_user=NAME,
        valkey_password_file=server.password_files[NAME],
    )


def route(tenant: TenantId = TENANT) -> Route:
    host = f"notes-{random_text(8)}.localhost"
    return Route(host, new_deployment_id(), tenant, RouteState.RUNNING, "notes", mcp=True)


async def test_a_route_is_found_by_its_exact_host(stores: Stores) -> None:
    mine = route()
    await stores.routing.put(mine)
    assert await stores.routing.find(mine.host) == mine
    assert await stores.routing.get(TENANT, mine.host) == mine
    assert await stores.routing.find(f"x{mine.host}") is None


async def test_a_route_is_remembered_when_it_is_written(stores: Stores) -> None:
    mine = route()
    await stores.routing.put(mine)
    remembered = await stores.cache.look_up(mine.host)
    assert remembered is not None
    assert remembered.route == mine


async def test_a_change_of_state_is_known_at_once(stores: Stores) -> None:
    starting = replace(route(), state=RouteState.STARTING)
    await stores.routing.put(starting)
    assert await stores.routing.find(starting.host) == starting
    running = replace(starting, state=RouteState.RUNNING)
    await stores.routing.put(running)
    assert await stores.routing.find(starting.host) == running


async def test_a_forgotten_route_is_read_again_and_remembered(stores: Stores) -> None:
    mine = route()
    await stores.routing.put(mine)
    await stores.valkey.delete(f"deploy:route:{mine.host}")
    assert await stores.routing.find(mine.host) == mine
    assert await stores.key(mine) is not None
    assert 0 < await stores.valkey.ttl(f"deploy:route:{mine.host}") <= 100


async def test_a_slow_reader_never_overwrites_a_newer_write(stores: Stores) -> None:
    old = replace(route(), state=RouteState.STARTING)
    new = replace(old, state=RouteState.RUNNING)
    await stores.routing.put(new)
    await stores.cache.refill(old.host, old)
    await stores.cache.refill(old.host, None)
    assert await stores.routing.find(old.host) == new


async def test_a_slow_reader_never_brings_back_a_deleted_route(stores: Stores) -> None:
    mine = route()
    await stores.routing.put(mine)
    await stores.routing.delete(TENANT, mine.deployment_id)
    await stores.cache.refill(mine.host, mine)
    assert await stores.routing.find(mine.host) is None
    assert 0 < await stores.valkey.ttl(f"deploy:route:{mine.host}") <= 60


async def test_a_deleted_host_is_unknown_at_once_and_deleting_twice_is_fine(
    stores: Stores,
) -> None:
    mine = route()
    await stores.routing.put(mine)
    await stores.routing.delete(TENANT, mine.deployment_id)
    await stores.routing.delete(TENANT, mine.deployment_id)
    assert await stores.routing.find(mine.host) is None
    with pytest.raises(NotFoundError):
        await stores.routing.get(TENANT, mine.host)


async def test_an_unknown_host_is_remembered_until_it_is_made(stores: Stores) -> None:
    mine = route()
    assert await stores.routing.find(mine.host) is None
    assert await stores.key(mine) == b"-"
    await stores.routing.put(mine)
    assert await stores.routing.find(mine.host) == mine


async def test_a_deleted_host_can_be_made_again(stores: Stores) -> None:
    mine = route()
    await stores.routing.put(mine)
    await stores.routing.delete(TENANT, mine.deployment_id)
    await stores.routing.put(mine)
    assert await stores.routing.find(mine.host) == mine


async def test_a_new_host_leaves_the_old_one_unknown(stores: Stores) -> None:
    mine = route()
    moved = replace(mine, host=f"moved-{random_text(8)}.localhost")
    await stores.routing.put(mine)
    await stores.routing.put(moved)
    assert await stores.routing.find(mine.host) is None
    assert await stores.routing.find(moved.host) == moved


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[]", b"null", b'{"host": "x"}', b'"-"', b"\xff\xfe"]
)
async def test_what_cannot_be_read_in_valkey_counts_as_nothing(
    stores: Stores, value: bytes
) -> None:
    mine = route()
    await stores.routing.put(mine)
    await stores.valkey.set(f"deploy:route:{mine.host}", value)
    assert await stores.routing.find(mine.host) == mine


async def test_a_route_remembered_under_another_host_is_not_believed(stores: Stores) -> None:
    mine, other = route(), route(OTHER)
    await stores.routing.put(mine)
    await stores.routing.put(other)
    value = await stores.key(other)
    assert value is not None
    await stores.valkey.set(f"deploy:route:{mine.host}", value)
    assert await stores.routing.find(mine.host) == mine


@pytest.mark.promise("P-41")
async def test_a_taken_host_is_refused_without_saying_whose(stores: Stores) -> None:
    theirs = route(OTHER)
    await stores.routing.put(theirs)
    with pytest.raises(AlreadyExistsError) as refused:
        await stores.routing.put(replace(route(), host=theirs.host))
    assert refused.value.reason == "HOST_TAKEN"
    assert OTHER not in refused.value.message
    assert refused.value.metadata == {}
    assert await stores.routing.find(theirs.host) == theirs


@pytest.mark.promise("P-41")
async def test_another_tenants_deployment_is_not_found(stores: Stores) -> None:
    theirs = route(OTHER)
    await stores.routing.put(theirs)
    mine = replace(theirs, tenant_id=TENANT, host=route().host)
    with pytest.raises(NotFoundError):
        await stores.routing.put(mine)
    await stores.routing.delete(TENANT, theirs.deployment_id)
    with pytest.raises(NotFoundError):
        await stores.routing.get(TENANT, theirs.host)
    assert await stores.routing.find(theirs.host) == theirs


@pytest.mark.promise("P-36")
async def test_a_forgotten_where_returns_no_other_tenants_rows(stores: Stores) -> None:
    await stores.routing.put(route())
    await stores.routing.put(route(OTHER))
    async with stores.database.tenant(TENANT) as connection:
        tenants = await connection.fetch("SELECT DISTINCT tenant_id FROM routes")
        assert [row["tenant_id"] for row in tenants] == [TENANT]
        renamed = await connection.execute(
            "UPDATE routes SET name = 'x' WHERE tenant_id = $1", OTHER
        )
        assert renamed == "UPDATE 0"
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(
                "INSERT INTO routes (deployment_id, tenant_id, host, state, name, mcp)"
                " VALUES ('dep_x', $1, 'x.localhost', 'running', 'x', true)",
                OTHER,
            )


@pytest.mark.promise("P-36")
async def test_the_owner_of_the_table_sees_no_rows_by_itself(stores: Stores) -> None:
    await stores.routing.put(route())
    assert await stores.database.pool.fetchval("SELECT count(*) FROM routes") == 0


@pytest.mark.promise("P-36")
async def test_the_service_role_only_reads(stores: Stores) -> None:
    async with stores.database.service() as connection:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM routes")


async def test_a_host_outside_the_domain_is_refused(stores: Stores) -> None:
    with pytest.raises(InvalidFieldError) as refused:
        await stores.routing.put(replace(route(), host="shop.example.com"))
    assert refused.value.field == "route.host"


@pytest.mark.promise("P-34")
async def test_the_services_user_cannot_enumerate_routes(stores: Stores) -> None:
    for command in ("KEYS *", "SCAN 0", "RANDOMKEY", "FLUSHDB", "DBSIZE"):
        with pytest.raises(redis.exceptions.NoPermissionError):
            await stores.valkey.execute_command(*command.split())
    with pytest.raises(redis.exceptions.NoPermissionError):
        await stores.valkey.get("limit:x")


async def test_without_valkey_routes_are_read_and_writes_are_refused(
    databases: Databases, valkey: ValkeyServer
) -> None:
    nobody = valkey_settings(valkey).model_copy(update={"valkey_port": free_ports(1)[0]})
    async with open_stores(databases, nobody) as stores:
        mine = route()
        # Whoever wrote it must try again: a replica may still remember the old one.
        with pytest.raises(UnavailableError):
            await stores.routing.put(mine)
        assert await stores.routing.find(mine.host) == mine
        with pytest.raises(UnavailableError):
            await stores.routing.delete(TENANT, mine.deployment_id)
        assert await stores.routing.find(mine.host) == mine


async def test_a_hung_valkey_is_done_without(databases: Databases, tmp_path: Path) -> None:
    async with losable_valkey(tmp_path / "valkey") as hung:
        settings = valkey_settings(hung.server)
        async with open_stores(databases, settings, patience_seconds=0.1) as stores:
            mine = route()
            await stores.routing.put(mine)
            hung.hang()
            try:
                # It still hangs: that all are answered shows that nobody waited for it.
                for _ in range(30):
                    assert await stores.routing.find(mine.host) == mine
            finally:
                hung.go_on()

            async def remembers() -> bool:
                try:
                    return await stores.cache.look_up(mine.host) == Remembered(mine)
                except UnavailableError:
                    return False

            await until(remembers)
