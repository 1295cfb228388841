"""What is counted of a deployment that is gone, and of a tenant: nothing, and it stays so."""

import time
from collections.abc import AsyncIterator

import pytest
import redis.asyncio
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub

from deploy.local.waiting import until
from services.ratelimit.erasable_store import kept_months, names_of
from services.ratelimit.ledger import Counted, LocalUse
from services.ratelimit.settings import Settings
from services.ratelimit.usage_store import UsageStore
from services.shared.ids import DeploymentId, TenantId, new_deployment_id
from services.shared.keyformat import digest
from services.shared.postgres import Database, open_database
from services.shared.redis import open_valkey
from tests.databases import SERVICES
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import expect_refused

PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="session")
def auth(mesh: Mesh) -> AuthServiceStub:
    return mesh.stub(AuthServiceStub, "auth", "provisioner")


@pytest.fixture(scope="session")
def ratelimit(mesh: Mesh) -> RatelimitServiceStub:
    """ratelimit, as the provisioner calls it."""
    return mesh.stub(RatelimitServiceStub, "ratelimit", "provisioner")


def settings_of(mesh: Mesh) -> Settings:
    settings = mesh.settings["ratelimit"]
    assert isinstance(settings, Settings)
    return settings


@pytest.fixture
async def database(mesh: Mesh) -> AsyncIterator[Database]:
    migrations = SERVICES / "ratelimit" / "migrations"
    async with open_database(settings_of(mesh), "ratelimit", migrations) as opened:
        yield opened


@pytest.fixture
async def client(mesh: Mesh) -> AsyncIterator[redis.asyncio.Redis]:
    async with open_valkey(settings_of(mesh)) as opened:
        assert isinstance(opened, redis.asyncio.Redis)
        yield opened


async def registered(auth: AuthServiceStub, customer: Customer) -> DeploymentId:
    deployment_id = new_deployment_id()
    await auth.RegisterDeployment(
        auth_pb.RegisterDeploymentRequest(deployment_id=deployment_id),
        metadata=bearer(customer.key),
    )
    return deployment_id


async def used(
    mesh: Mesh, auth: AuthServiceStub, database: Database, customer: Customer
) -> DeploymentId:
    """Returns a deployment with a bucket, a lease and a month, in Valkey and in Postgres."""
    deployment = await registered(auth, customer)
    key = (await mesh.key(customer, deployment)).key
    door = mesh.stub(RatelimitServiceStub, "ratelimit", "app_proxy")
    await door.Acquire(pb.AcquireRequest(items=[pb.AcquireItem(key_digest=digest(key), cost=3)]))
    await door.Lease(pb.LeaseRequest(items=[pb.LeaseItem(key_digest=digest(key), calls=2)]))

    async def saved() -> bool:
        return await rows(database, deployment) > 0

    await until(saved, PATIENCE_SECONDS)
    return deployment


async def rows(database: Database, named: str) -> int:
    """Returns how many rows of counts have the deployment or the tenant."""
    async with database.service() as connection:
        found = await connection.fetchval(
            "SELECT (SELECT count(*) FROM monthly_usage WHERE $1 IN (deployment_id, tenant_id))"
            " + (SELECT count(*) FROM local_usage WHERE $1 IN (deployment_id, tenant_id))",
            named,
        )
    assert isinstance(found, int)
    return found


async def counters(client: redis.asyncio.Redis, deployment: DeploymentId) -> int:
    names = names_of(deployment, kept_months(time.time_ns() // 1_000))
    return int(await client.exists(*names))


async def release(ratelimit: RatelimitServiceStub, deployment: str, key: str) -> None:
    await ratelimit.ReleaseDeployment(
        pb.ReleaseDeploymentRequest(deployment_id=deployment), metadata=bearer(key)
    )


def late(customer: Customer, deployment: DeploymentId) -> tuple[Counted, LocalUse]:
    """Returns what another replica remembers and has not written down yet."""
    month = kept_months(time.time_ns() // 1_000)[1]
    tenant = TenantId(customer.tenant_id)
    return (
        Counted(deployment, month, tenant, 9),
        LocalUse("another", deployment, month, tenant, 9, 0, 0, None),
    )


@pytest.mark.promise("P-39")
async def test_nothing_is_counted_of_a_released_deployment_nor_comes_back(
    mesh: Mesh,
    auth: AuthServiceStub,
    ratelimit: RatelimitServiceStub,
    database: Database,
    client: redis.asyncio.Redis,
) -> None:
    customer = await mesh.customer()
    gone, stays = [await used(mesh, auth, database, customer) for _ in range(2)]
    job = await mesh.job_key(customer)
    assert await counters(client, gone) == 2
    # As when it is deleted: no key of it is left, and auth knows it as one that was.
    await auth.RetireDeployment(
        auth_pb.RetireDeploymentRequest(deployment_id=gone), metadata=bearer(job)
    )
    await release(ratelimit, gone, job)
    assert (await rows(database, gone), await counters(client, gone)) == (0, 0)
    counted, use = late(customer, gone)
    await UsageStore(database).save([counted], [use])
    await release(ratelimit, gone, job)
    assert (await rows(database, gone), await counters(client, gone)) == (0, 0)
    assert (await rows(database, stays), await counters(client, stays)) == (1, 2)


@pytest.mark.promise("P-41")
async def test_nobody_releases_what_is_another_tenants(
    mesh: Mesh,
    auth: AuthServiceStub,
    ratelimit: RatelimitServiceStub,
    database: Database,
    client: redis.asyncio.Redis,
) -> None:
    victim, attacker = await mesh.customer(), await mesh.customer()
    deployment = await used(mesh, auth, database, victim)
    for key in (attacker.key, await mesh.job_key(attacker)):
        for named in (deployment, new_deployment_id()):
            with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
                await release(ratelimit, named, key)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="deployment_id"):
        await release(ratelimit, "", attacker.key)
    assert (await rows(database, deployment), await counters(client, deployment)) == (1, 2)


@pytest.mark.promise("P-39")
async def test_nothing_is_counted_of_an_erased_tenant_and_asking_again_answers_the_same(
    mesh: Mesh,
    auth: AuthServiceStub,
    ratelimit: RatelimitServiceStub,
    database: Database,
    client: redis.asyncio.Redis,
) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    first, second = [await used(mesh, auth, database, customer) for _ in range(2)]
    others = await used(mesh, auth, database, other)
    job = await mesh.job_key(customer)
    await release(ratelimit, first, job)
    erased = await ratelimit.EraseTenant(pb.EraseTenantRequest(), metadata=bearer(job))
    assert erased.deployments == 1
    assert erased.HasField("erase_time")
    await UsageStore(database).save([late(customer, second)[0]], [late(customer, second)[1]])
    assert await ratelimit.EraseTenant(pb.EraseTenantRequest(), metadata=bearer(job)) == erased
    assert [await counters(client, each) for each in (first, second)] == [0, 0]
    assert await rows(database, customer.tenant_id) == 0
    async with database.service() as connection:
        assert await connection.fetchval(
            "SELECT count(*) FROM releases WHERE tenant_id = $1", customer.tenant_id
        ) == 0  # fmt: skip
    assert (await rows(database, others), await counters(client, others)) == (1, 2)


def test_every_month_that_may_still_be_counted_is_known_by_name() -> None:
    at_us = 1_764_936_000_000_000  # 2025-12-05 12:00 UTC: October's counts go on the 10th
    assert kept_months(at_us)[:4] == ["2026-01", "2025-12", "2025-11", "2025-10"]
    assert "2025-09" in kept_months(1_762_700_000_000_000)
