"""Operations that outlive the key that they began with, or whose key is taken."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.auth.settings import Settings as AuthSettings
from services.provisioner.settings import Settings
from services.shared.postgres import connect
from services.shared.settings import PostgresSettings
from tests.apps import App, an_app
from tests.conftest import StartMesh
from tests.mesh import PATIENCE_SECONDS, Mesh, bearer, fresh_id


@pytest.fixture(scope="module")
async def mesh(start_mesh: StartMesh) -> AsyncIterator[Mesh]:
    """A mesh of its own, for its services are stopped."""
    async with start_mesh({"provisioner": {"sweep_seconds": 0.3}}) as running:
        yield running


@asynccontextmanager
async def without(mesh: Mesh, service: str) -> AsyncIterator[None]:
    await mesh.stop(service)
    try:
        yield
    finally:
        await mesh.start(service)


async def asked(settings: object, role: str, statement: str, *arguments: object) -> Any:
    """Returns the first value of a statement about a service's own rows."""
    assert isinstance(settings, PostgresSettings)
    connection = await connect(settings)
    try:
        async with connection.transaction():
            await connection.execute("SELECT set_config('role', $1, true)", role)
            return await connection.fetchval(statement, *arguments)
    finally:
        await connection.close()


async def renewal(mesh: Mesh, operation_id: str) -> datetime:
    """Returns when the operation's key is to be replaced next."""
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    statement = "SELECT key_renew_at FROM operations WHERE operation_id = $1"
    found = await asked(settings, "provisioner_service", statement, operation_id)
    assert isinstance(found, datetime)
    return found


async def revoke_jobs(mesh: Mesh, tenant_id: str, *, besides_newest: bool = False) -> None:
    """Takes the keys of the tenant's jobs."""
    settings = mesh.settings["auth"]
    assert isinstance(settings, AuthSettings)
    statement = (
        "UPDATE keys SET revoked_at = now() WHERE tenant_id = $1 AND kind = 'job' AND NOT ($2"
        " AND created_at = (SELECT max(created_at) FROM keys WHERE tenant_id = $1))"
    )
    await asked(settings, "auth_service", statement, tenant_id, besides_newest)


async def test_an_operation_takes_a_new_key_before_the_one_it_began_with_ends(mesh: Mesh) -> None:
    customer = await mesh.customer()
    stub = mesh.stub(ProvisionerServiceStub, "provisioner")
    async with without(mesh, "app_proxy"):
        created = await stub.CreateDeployment(
            pb2.CreateDeploymentRequest(request_id=fresh_id(), name="patient"),
            metadata=bearer(customer.key),
        )
        app = App(mesh, customer, created.deployment.deployment_id, created.deployment.host)
        operation_id = created.operation.operation_id
        due = await renewal(mesh, operation_id)
        await app.rewrite(
            "UPDATE operations SET key_renew_at = now(), next_try_at = now()"
            " WHERE deployment_id = $1"
        )
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await renewal(mesh, operation_id) <= due:
                await asyncio.sleep(0.05)
        await revoke_jobs(mesh, customer.tenant_id, besides_newest=True)
    done = await mesh.finished(customer, operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED, done


async def test_a_deletion_whose_key_is_refused_goes_on_visibly_and_ends_with_a_new_one(
    mesh: Mesh,
) -> None:
    app = await an_app(mesh, database=False)
    async with without(mesh, "credentials"):
        operation = await app.delete()
        await revoke_jobs(mesh, app.customer.tenant_id)
        seen = await until(app, lambda latest: latest.retries > 1)
    seen = await until(app, lambda latest: latest.retries > seen.retries + 1)
    assert seen.state == pb2.OPERATION_STATE_RUNNING
    assert seen.message
    assert (await app.resources())["LOANS"] == "GOING"
    assert (await app.delete()).operation_id == operation.operation_id
    await app.done(operation)


async def until(app: App, met: Any) -> pb2.Operation:
    """Returns the deployment's last operation once it is as `met` says."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not met(latest := (await app.get()).last_operation):
            await asyncio.sleep(0.05)
    return latest
