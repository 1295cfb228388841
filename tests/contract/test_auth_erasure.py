"""The end of what auth keeps of a tenant, and the keys of the jobs that bring it about."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.auth.erasure_store import forget_expired_keys
from services.auth.settings import Settings
from services.shared.ids import TenantId, new_connection_id, new_deployment_id
from services.shared.keyformat import digest
from services.shared.postgres import Database, open_database
from tests.databases import SERVICES, Databases
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import expect_refused

MIGRATIONS = SERVICES / "auth" / "migrations"


@pytest.fixture(scope="session")
def auth(mesh: Mesh) -> AuthServiceStub:
    """auth, as the provisioner calls it."""
    return mesh.stub(AuthServiceStub, "auth", "provisioner")


@pytest.fixture
async def database(mesh: Mesh) -> AsyncIterator[Database]:
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    async with open_database(settings, "auth", MIGRATIONS) as opened:
        yield opened


@dataclass(frozen=True, slots=True)
class Closed:
    """A tenant that had something of everything, and the key that tears it down."""

    customer: Customer
    deployment_id: str
    job: str


@pytest.fixture
async def closed(mesh: Mesh, auth: AuthServiceStub) -> Closed:
    return await close(mesh, auth)


async def close(mesh: Mesh, auth: AuthServiceStub) -> Closed:
    customer = await mesh.customer()
    deployment_id = new_deployment_id()
    await auth.RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    await mesh.stub(AuthServiceStub, "auth", "credentials").RegisterConnection(
        pb2.RegisterConnectionRequest(connection_id=new_connection_id()),
        metadata=bearer(customer.key),
    )
    await mesh.key(customer, deployment_id)
    answer = await auth.CloseTenant(
        pb2.CloseTenantRequest(), metadata=bearer(await mesh.job_key(customer))
    )
    return Closed(customer, deployment_id, answer.job_key)


async def erased(auth: AuthServiceStub, job: str) -> pb2.EraseTenantResponse:
    answer: pb2.EraseTenantResponse = await auth.EraseTenant(
        pb2.EraseTenantRequest(), metadata=bearer(job)
    )
    return answer


async def delegated(auth: AuthServiceStub, job: str, *scopes: str) -> str:
    answer = await auth.Delegate(
        pb2.DelegateRequest(purpose="goes on", scopes=scopes), metadata=bearer(job)
    )
    return str(answer.key)


async def principal(mesh: Mesh, key: str) -> pb2.Principal | None:
    answer = await mesh.stub(AuthServiceStub, "auth", "app_proxy").ResolveKeys(
        pb2.ResolveKeysRequest(digests=[digest(key)])
    )
    found = answer.resolutions[0]
    return found.principal if found.HasField("principal") else None


async def mentions(databases: Databases, mesh: Mesh, text: str) -> dict[str, int]:
    """Returns how many rows of which tables have the text anywhere in them."""
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    superuser = await databases.postgres.connect(settings.postgres_database)
    try:
        tables = await superuser.fetch("SELECT tablename FROM pg_tables WHERE schemaname='public'")
        counts = {
            name: await superuser.fetchval(
                f'SELECT count(*) FROM "{name}" AS each WHERE strpos(each::text, $1) > 0', text
            )
            for (name,) in tables
        }
        return {name: count for name, count in counts.items() if count}
    finally:
        await superuser.close()


@pytest.mark.promise("P-39")
async def test_every_row_of_a_closed_tenant_goes_and_a_tombstone_stays(
    mesh: Mesh, auth: AuthServiceStub, databases: Databases, closed: Closed
) -> None:
    tenant_id = closed.customer.tenant_id
    other = await mesh.customer()
    assert set(await mentions(databases, mesh, tenant_id)) == {
        "audit_chains", "audit_events", "connections", "deployments", "keys", "tenants"
    }  # fmt: skip
    answer = await erased(auth, closed.job)
    assert (answer.keys, answer.deployments, answer.connections) == (4, 1, 1)
    assert answer.audit_events >= 1
    assert answer.HasField("erase_time")
    assert await mentions(databases, mesh, tenant_id) == {"tombstones": 1}
    assert await mentions(databases, mesh, closed.deployment_id) == {}
    assert await principal(mesh, other.key) is not None
    assert "tenants" in await mentions(databases, mesh, other.tenant_id)


async def test_erasing_again_with_the_same_key_answers_the_same(
    mesh: Mesh, auth: AuthServiceStub, closed: Closed
) -> None:
    first = await erased(auth, closed.job)
    assert await erased(auth, closed.job) == first
    left = await principal(mesh, closed.job)
    assert left is not None
    assert (left.tenant_id, left.bound_peer) == (closed.customer.tenant_id, "provisioner")
    # It opens what it did, and finds nothing there; no further key comes to be of it.
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await delegated(auth, closed.job)
    # Nor is there a log any more to write another closing into.
    with expect_refused("UNAVAILABLE", "AUDIT_UNAVAILABLE"):
        await auth.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(closed.job))


async def test_a_tenant_that_is_not_closed_is_not_erased(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    job = await mesh.job_key(customer)
    with expect_refused("FAILED_PRECONDITION", "OPERATION_FAILED"):
        await erased(auth, job)
    assert await principal(mesh, customer.key) is not None


@pytest.mark.promise("P-37")
async def test_no_service_takes_another_key_of_an_erased_tenant_any_more(
    mesh: Mesh, auth: AuthServiceStub, closed: Closed
) -> None:
    renewed = await delegated(auth, closed.job)
    credentials = mesh.stub(CredentialsServiceStub, "credentials", "provisioner")
    request = credentials_pb2.ReleaseDeploymentRequest(deployment_id=closed.deployment_id)
    await credentials.ReleaseDeployment(request, metadata=bearer(renewed))
    await erased(auth, closed.job)
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await credentials.ReleaseDeployment(request, metadata=bearer(renewed))
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await erased(auth, renewed)


async def test_the_key_that_erased_a_tenant_is_forgotten_when_it_has_expired(
    mesh: Mesh, auth: AuthServiceStub, databases: Databases, database: Database, closed: Closed
) -> None:
    await erased(auth, closed.job)
    left = await principal(mesh, closed.job)
    assert left is not None
    async with database.service() as connection:
        await forget_expired_keys(connection)
    assert await principal(mesh, closed.job) is not None
    async with database.service() as connection:
        await connection.execute(
            "UPDATE tombstones SET expires_at = now() - interval '1 second' WHERE tenant_id = $1",
            closed.customer.tenant_id,
        )
    assert await principal(mesh, closed.job) is None
    async with database.service() as connection:
        await forget_expired_keys(connection)
    assert await mentions(databases, mesh, left.key_id) == {}
    assert await mentions(databases, mesh, closed.customer.tenant_id) == {"tombstones": 1}


async def test_the_jobs_of_a_closed_tenant_go_on_with_another_key_that_can_do_no_more(
    mesh: Mesh, auth: AuthServiceStub, closed: Closed
) -> None:
    same = await principal(mesh, await delegated(auth, closed.job))
    narrow = await delegated(auth, closed.job, "deployments:write")
    less = await principal(mesh, await delegated(auth, narrow))
    assert same is not None
    assert less is not None
    assert sorted(same.scopes) == ["deployments:write", "tenants:write"]
    assert (list(less.scopes), less.bound_peer) == (["deployments:write"], "provisioner")
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await delegated(auth, narrow, "deployments:write", "tenants:write")


async def test_a_job_whose_key_was_ended_by_a_closing_goes_on_with_none(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    old = await mesh.job_key(customer)
    await auth.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(await mesh.job_key(customer)))
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await delegated(auth, old)


@pytest.mark.promise("P-37")
async def test_no_key_that_a_job_gets_while_its_tenant_is_closed_survives_that(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    old, job = await mesh.job_key(customer), await mesh.job_key(customer)
    made, closed = await asyncio.gather(
        asyncio.gather(*(delegated(auth, old) for _ in range(12)), return_exceptions=True),
        auth.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(job)),
    )
    keys = [each for each in made if isinstance(each, str)]
    assert [await principal(mesh, key) for key in keys] == [None] * len(keys)
    # Of a closed tenant they live long: nothing else could take over from them.
    left = await principal(mesh, await delegated(auth, closed.job_key))
    usual = await principal(mesh, await mesh.job_key(await mesh.customer()))
    assert left is not None
    assert usual is not None
    assert left.expire_time.seconds - usual.expire_time.seconds > 86_400


@pytest.mark.promise("P-36")
async def test_neither_another_tenant_nor_an_open_one_can_be_given_a_tombstone(
    mesh: Mesh, auth: AuthServiceStub, database: Database, closed: Closed
) -> None:
    customer = await mesh.customer()
    bury = "INSERT INTO tombstones (tenant_id, key_id) VALUES ($1, 'key_x')"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.tenant(TenantId(customer.tenant_id)) as connection:
            await connection.execute(bury, closed.customer.tenant_id)
    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="only a closed tenant"):
        async with database.tenant(TenantId(customer.tenant_id)) as connection:
            await connection.execute(bury, customer.tenant_id)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with database.service() as connection:
            await connection.execute(bury, closed.customer.tenant_id)
    assert await principal(mesh, closed.job) is not None
    assert await principal(mesh, customer.key) is not None


async def test_a_deployment_is_told_whose_it_is_when_it_is_retired_and_not_when_it_is_erased(
    mesh: Mesh, auth: AuthServiceStub, closed: Closed
) -> None:
    asking = mesh.stub(AuthServiceStub, "auth", "ratelimit")
    retired = pb2.RetireDeploymentRequest(deployment_id=closed.deployment_id)
    await auth.RetireDeployment(retired, metadata=bearer(closed.job))
    request = pb2.ResolveDeploymentsRequest(
        deployment_ids=[new_deployment_id(), closed.deployment_id]
    )
    answer = await asking.ResolveDeployments(request)
    assert list(answer.tenant_ids) == ["", closed.customer.tenant_id]
    await erased(auth, closed.job)
    assert list((await asking.ResolveDeployments(request)).tenant_ids) == ["", ""]
    for wrong in ([], [closed.deployment_id] * 257):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="deployment_ids"):
            await asking.ResolveDeployments(pb2.ResolveDeploymentsRequest(deployment_ids=wrong))


@pytest.mark.promise("P-09")
async def test_a_deployments_key_reads_its_environment_only_when_that_was_asked_for(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    deployment_id = new_deployment_id()
    await auth.RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    usual = await mesh.key(customer, deployment_id)
    assert "environment:read" not in usual.scopes
    asked = await mesh.key(customer, deployment_id, ("environment:read",))
    assert list(asked.scopes) == ["environment:read"]
    narrow = await mesh.key(customer, scopes=("keys:write", "secrets:write"))
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await mesh.key(
            Customer(customer.tenant_id, narrow.key, narrow.key_id),
            deployment_id,
            ("environment:read",),
        )
