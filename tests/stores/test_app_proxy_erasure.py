"""The end of a tenant's routes on real Postgres and Valkey: forgotten first, and for good."""

import asyncio
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest

from deploy.local.valkey import ValkeyServer
from services.app_proxy.routes import Route
from services.shared.errors import NotFoundError, UnavailableError
from services.shared.ids import TenantId, new_tenant_id
from tests.databases import Databases
from tests.stores.test_app_proxy_routes import Stores, open_stores, route, valkey_settings


@pytest.fixture(scope="module")
async def stores(databases: Databases, valkey: ValkeyServer) -> AsyncIterator[Stores]:
    async with open_stores(databases, valkey_settings(valkey)) as opened:
        yield opened


async def put(stores: Stores, tenant: TenantId, number: int) -> list[Route]:
    routes = [route(tenant) for _ in range(number)]
    for each in routes:
        await stores.routing.put(each)
    return routes


@pytest.mark.promise("P-39")
async def test_what_valkey_does_not_forget_is_not_deleted(stores: Stores) -> None:
    tenant = new_tenant_id()
    (mine,) = await put(stores, tenant, 1)

    async def away(hosts: Sequence[str]) -> None:
        assert list(hosts) == [mine.host]
        raise UnavailableError("away")

    with pytest.raises(UnavailableError):
        await stores.rows.erase(tenant, away)
    # As if nobody had asked: a repeated call finds the host again.
    assert await stores.routing.get(tenant, mine.host) == mine
    assert (await stores.routing.erase(tenant)).routes == 1
    assert await stores.key(mine) == b"-"
    assert await stores.routing.find(mine.host) is None


@pytest.mark.promise("P-39")
async def test_a_route_that_is_put_meanwhile_is_erased_too_or_refused(stores: Stores) -> None:
    tenant = new_tenant_id()
    many = [route(tenant) for _ in range(12)]
    outcomes = await asyncio.gather(
        *(stores.routing.put(each) for each in many[:6]),
        stores.routing.erase(tenant),
        *(stores.routing.put(each) for each in many[6:]),
        return_exceptions=True,
    )
    failures = [each for each in outcomes if isinstance(each, BaseException)]
    assert all(isinstance(each, NotFoundError) for each in failures), failures
    assert [await stores.routing.find(each.host) for each in many] == [None] * 12


async def test_a_slow_reader_never_brings_back_an_erased_route(stores: Stores) -> None:
    tenant = new_tenant_id()
    (mine,) = await put(stores, tenant, 1)
    await stores.routing.erase(tenant)
    await stores.cache.refill(mine.host, mine)
    assert await stores.routing.find(mine.host) is None


@pytest.mark.promise("P-36")
async def test_a_tenants_transaction_erases_no_other(stores: Stores) -> None:
    mine, theirs = new_tenant_id(), new_tenant_id()
    (stays,) = await put(stores, theirs, 1)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with stores.database.tenant(mine) as connection:
            await connection.execute("INSERT INTO tombstones (tenant_id) VALUES ($1)", theirs)
    await stores.routing.erase(mine)
    assert await stores.routing.find(stays.host) == stays
    await put(stores, theirs, 1)
