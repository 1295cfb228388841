"""Erasing a tenant over the wire: what goes, what is told, and what a crash in between loses."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.credentials.server import compose
from services.credentials.settings import Settings
from services.shared.ids import new_deployment_id
from services.shared.server import serving
from services.shared.tls import Identity, channel_credentials
from tests.canaries import STATIC_TOKEN
from tests.databases import Databases
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble, Wire, hangs, refuses
from tests.providers import allowed
from tests.refusals import expect_refused

UNSUPPORTED, FAILED = pb2.REVOCATION_UNSUPPORTED, pb2.REVOCATION_FAILED


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


@pytest.fixture(scope="session")
def credentials(mesh: Mesh) -> CredentialsServiceStub:
    return mesh.stub(CredentialsServiceStub, "credentials")


async def erase(
    stub: CredentialsServiceStub, job_key: str, seconds: float = PATIENCE_SECONDS
) -> pb2.EraseTenantResponse:
    return await stub.EraseTenant(
        pb2.EraseTenantRequest(), metadata=bearer(job_key), timeout=seconds
    )


@pytest.fixture
def eraser(mesh: Mesh) -> CredentialsServiceStub:
    """credentials, as the provisioner calls it."""
    return mesh.stub(CredentialsServiceStub, "credentials", "provisioner")


async def static(credentials: CredentialsServiceStub, customer: Customer, name: str) -> str:
    made = await credentials.CreateConnection(
        pb2.CreateConnectionRequest(
            request_id=fresh_id(),
            provider="github",
            name=name,
            static_token=pb2.StaticToken(token=STATIC_TOKEN),
        ),
        metadata=bearer(customer.key),
    )
    return str(made.connection.connection_id)


async def for_itself(
    credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> str:
    """Returns a connection of the customer's own OAuth client, with one token to revoke."""
    own = pb2.ClientCredentials(
        client_id=provider.client.client_id, client_secret=provider.client.client_secret
    )
    made = await credentials.CreateConnection(
        pb2.CreateConnectionRequest(
            request_id=fresh_id(), provider="loopback", name="own", client_credentials=own
        ),
        metadata=bearer(customer.key),
    )
    return str(made.connection.connection_id)


async def authorized(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer, *, finish: bool = True
) -> str:
    """Returns a connection that a person has allowed, or is still to allow."""
    started = await credentials.StartAuthorization(
        pb2.StartAuthorizationRequest(request_id=fresh_id(), provider="loopback", name="mia"),
        metadata=bearer(customer.key),
    )
    if finish:
        state, code = await allowed(started.authorization_url)
        await mesh.stub(CredentialsServiceStub, "credentials", "app_proxy").FinishAuthorization(
            pb2.FinishAuthorizationRequest(state=state, code=code)
        )
    return str(started.connection.connection_id)


async def delete(
    credentials: CredentialsServiceStub, customer: Customer, connection_id: str
) -> None:
    await credentials.DeleteConnection(
        pb2.DeleteConnectionRequest(connection_id=connection_id), metadata=bearer(customer.key)
    )


async def tables_naming(databases: Databases, mesh: Mesh, tenant: str) -> list[str]:
    """Returns the tables of credentials' database that hold the tenant's id anywhere."""
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    superuser = await databases.postgres.connect(settings.postgres_database)
    try:
        tables = await superuser.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        )
        assert len(tables) > 8
        return sorted(
            [
                name
                for name in (row["tablename"] for row in tables)
                if await superuser.fetchval(
                    f'SELECT count(*) FROM "{name}" t WHERE t::text LIKE $1',
                    f"%{tenant}%",
                )
            ]
        )
    finally:
        await superuser.close()


@pytest.mark.promise("P-09")
@pytest.mark.promise("P-22")
async def test_nothing_of_an_erased_tenant_is_left_but_its_receipt(
    mesh: Mesh,
    credentials: CredentialsServiceStub,
    eraser: CredentialsServiceStub,
    databases: Databases,
    customer: Customer,
    provider: ProviderDouble,
) -> None:
    deployment = await mesh.deployment(customer, database=False, mcp=False)
    kept = await static(credentials, customer, "kept there")
    await authorized(mesh, credentials, customer)
    await authorized(mesh, credentials, customer, finish=False)
    await delete(credentials, customer, await static(credentials, customer, "gone before"))
    await credentials.BindConnection(
        pb2.BindConnectionRequest(deployment_id=deployment.deployment_id, connection_id=kept),
        metadata=bearer(customer.key),
    )
    await credentials.SetWebhook(
        pb2.SetWebhookRequest(url="https://hooks.example/"), metadata=bearer(customer.key)
    )
    assert "data_keys" in await tables_naming(databases, mesh, customer.tenant_id)
    neighbour = await mesh.customer()
    await static(credentials, neighbour, "another's")
    before = await tables_naming(databases, mesh, neighbour.tenant_id)
    granted = good_grants(provider)
    job = await mesh.job_key(customer)
    receipt = await erase(eraser, job)
    assert await tables_naming(databases, mesh, customer.tenant_id) == ["erasures"]
    assert good_grants(provider) == granted - 1
    assert await tables_naming(databases, mesh, neighbour.tenant_id) == before
    assert (receipt.connections, receipt.bindings, receipt.revoked) == (3, 1, 1)
    (left,) = receipt.unrevoked
    assert (left.connection_id, left.provider, left.name) == (kept, "github", "kept there")
    assert (left.revocation, bool(left.advice)) == (UNSUPPORTED, True)
    assert receipt.HasField("erase_time")
    assert await erase(eraser, job) == receipt


def good_grants(provider: ProviderDouble) -> int:
    return sum(token.good for token in provider.state.refresh_tokens.values())


async def test_what_the_provider_did_not_withdraw_is_in_the_receipt(
    mesh: Mesh,
    credentials: CredentialsServiceStub,
    eraser: CredentialsServiceStub,
    customer: Customer,
    provider: ProviderDouble,
) -> None:
    connection_id = await for_itself(credentials, customer, provider)
    provider.next("/revoke", refuses("unsupported_token_type"))
    receipt = await erase(eraser, await mesh.job_key(customer))
    (left,) = receipt.unrevoked
    assert (left.connection_id, left.revocation) == (connection_id, FAILED)
    assert "withdraw it in the settings there" in left.advice
    assert (receipt.connections, receipt.revoked) == (1, 0)


async def test_a_tenant_that_has_nothing_is_erased_all_the_same(
    mesh: Mesh, eraser: CredentialsServiceStub, customer: Customer
) -> None:
    job = await mesh.job_key(customer)
    receipt = await erase(eraser, job)
    assert receipt == pb2.EraseTenantResponse(erase_time=receipt.erase_time)
    assert await erase(eraser, job) == receipt


async def test_nothing_comes_to_be_of_an_erased_tenant(
    mesh: Mesh,
    credentials: CredentialsServiceStub,
    eraser: CredentialsServiceStub,
    databases: Databases,
    customer: Customer,
) -> None:
    await erase(eraser, await mesh.job_key(customer))
    await refused_to_make_anything(mesh, credentials, customer)
    assert await tables_naming(databases, mesh, customer.tenant_id) == ["erasures"]


@pytest.mark.promise("P-22")
async def test_an_erasure_waits_for_what_is_just_being_made_and_erases_it(
    mesh: Mesh, eraser: CredentialsServiceStub, databases: Databases, customer: Customer
) -> None:
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    superuser = await databases.postgres.connect(settings.postgres_database)
    job = await mesh.job_key(customer)
    try:
        making = superuser.transaction()
        await making.start()
        await superuser.execute(
            "INSERT INTO deployments (deployment_id, tenant_id) VALUES ($1, $2)",
            new_deployment_id(),
            customer.tenant_id,
        )
        erasing = asyncio.create_task(erase(eraser, job))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await superuser.fetchval(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            ):
                assert not erasing.done()
                await asyncio.sleep(0.05)
        await making.commit()
        await erasing
    finally:
        await superuser.close()
    assert await tables_naming(databases, mesh, customer.tenant_id) == ["erasures"]


async def refused_to_make_anything(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await static(credentials, customer, "again")
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await authorized(mesh, credentials, customer, finish=False)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await credentials.SetWebhook(
            pb2.SetWebhookRequest(url="https://hooks.example/"), metadata=bearer(customer.key)
        )


@pytest.mark.promise("P-22")
async def test_while_a_provider_hangs_nothing_is_vended_and_the_call_can_be_repeated(
    mesh: Mesh,
    credentials: CredentialsServiceStub,
    eraser: CredentialsServiceStub,
    customer: Customer,
    provider: ProviderDouble,
) -> None:
    connection_id = await for_itself(credentials, customer, provider)
    deployment = await mesh.deployment(customer, database=False, mcp=False)
    await credentials.BindConnection(
        pb2.BindConnectionRequest(
            deployment_id=deployment.deployment_id, connection_id=connection_id, alias="own"
        ),
        metadata=bearer(customer.key),
    )
    key = (await mesh.key(customer, deployment.deployment_id)).key
    assert (await vended(credentials, key)).HasField("token")
    job, seen, go_on = await mesh.job_key(customer), provider.seen["/revoke"], asyncio.Event()
    provider.next("/revoke", hangs(go_on))
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await erase(eraser, job, 1.0)
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await vended(credentials, key)).HasField("refusal")
    await refused_to_make_anything(mesh, credentials, customer)
    go_on.set()
    receipt = await erase(eraser, job)
    assert (receipt.connections, receipt.bindings, receipt.revoked) == (1, 1, 1)
    assert provider.seen["/revoke"] == seen + 1


async def vended(credentials: CredentialsServiceStub, key: str) -> pb2.VendResult:
    answer = await credentials.Vend(
        pb2.VendRequest(items=[pb2.VendItem(alias="own")]), metadata=bearer(key)
    )
    return answer.results[0]


async def test_a_replica_that_dies_in_between_loses_no_outcome(
    mesh: Mesh,
    credentials: CredentialsServiceStub,
    eraser: CredentialsServiceStub,
    databases: Databases,
    customer: Customer,
    provider: ProviderDouble,
) -> None:
    for _ in range(2):
        await for_itself(credentials, customer, provider)
    job, seen = await mesh.job_key(customer), provider.seen["/revoke"]
    async with another_replica(mesh) as doomed:
        # One is handed on; the other one's answer never comes.
        provider.next("/revoke", hand_on, hangs(asyncio.Event()))
        call = asyncio.create_task(erase(doomed, job))
        await until_revoked(databases, mesh, customer.tenant_id, 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while provider.seen["/revoke"] < seen + 2:
                await asyncio.sleep(0.05)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    receipt = await erase(eraser, job)
    assert (receipt.connections, receipt.revoked) == (2, 2)
    assert provider.seen["/revoke"] == seen + 3


async def hand_on(wire: Wire) -> None:
    wire.writer.write(await wire.forward())


async def until_revoked(databases: Databases, mesh: Mesh, tenant: str, count: int) -> None:
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    superuser = await databases.postgres.connect(settings.postgres_database)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while count != await superuser.fetchval(
                "SELECT count(*) FROM connections WHERE tenant_id = $1 AND revocation = 'revoked'",
                tenant,
            ):
                await asyncio.sleep(0.05)
    finally:
        await superuser.close()


@asynccontextmanager
async def another_replica(mesh: Mesh) -> AsyncIterator[CredentialsServiceStub]:
    """Yields a second credentials, over the same database, as the provisioner calls it."""
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    own = settings.model_copy(update={"listen": "127.0.0.1:0", "health_listen": "127.0.0.1:0"})
    files = mesh.pki["provisioner"]
    identity = Identity.read(files.certificate, files.key, files.authority)
    async with (
        compose(own) as composed,
        serving(composed, own) as address,
        grpc.aio.secure_channel(
            f"127.0.0.1:{address.port}",
            channel_credentials(identity),
            options=[("grpc.ssl_target_name_override", "credentials")],
        ) as channel,
    ):
        yield CredentialsServiceStub(channel)


async def test_only_a_job_that_may_close_tenants_erases_one(
    mesh: Mesh, eraser: CredentialsServiceStub, customer: Customer
) -> None:
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await erase(eraser, customer.key)
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await erase(eraser, await mesh.job_key(customer, scopes=("deployments:write",)))
    with expect_refused("PERMISSION_DENIED", "PEER_REFUSED"):
        await erase(mesh.stub(CredentialsServiceStub, "credentials"), customer.key)
