"""Deletion: cut off at once, destroyed to the last, proven by a certificate (P-39)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.provisioner.drivers.postgres_process import reachable_home
from services.shared.postgres import Connection, connect
from tests.certificates import certified, verified
from tests.lending import Lender
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused

pytestmark = pytest.mark.promise("P-39")
TOKEN = "chosen-by-the-caller-and-long-enough-0123456789"


@pytest.fixture(scope="session")
def provisioner(mesh: Mesh) -> ProvisionerServiceStub:
    return mesh.stub(ProvisionerServiceStub, "provisioner")


@asynccontextmanager
async def below(mesh: Mesh, service: str) -> AsyncIterator[Connection]:
    """Yields a connection to a service's own database that sees every row."""
    settings: Any = mesh.settings[service]
    connection = await connect(settings)
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {service}_service")
            yield connection
    finally:
        await connection.close()


async def rows_naming(mesh: Mesh, service: str, names: list[str]) -> dict[str, int]:
    """Returns how many rows of each table of the service name any of these, in any column."""
    async with below(mesh, service) as connection:
        tables = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            " AND has_table_privilege(format('%I.%I', schemaname, tablename), 'SELECT')"
        )
        found = {
            table["tablename"]: await connection.fetchval(
                f"SELECT count(*) FROM {table['tablename']} AS one"
                " WHERE one::text LIKE ANY($1)"
                " OR (to_jsonb(one)->>'payload') LIKE ANY($2)",
                [f"%{name}%" for name in names],
                [f"%{name.encode().hex()}%" for name in names],
            )
            for table in tables
        }
    return {table: count for table, count in found.items() if count}


def copies(mesh: Mesh, backup_id: str) -> list[Path]:
    """Returns every file of the mesh that is named after the backup."""
    return list(mesh.home.rglob(f"*{backup_id}*"))


async def delete_tenant(
    provisioner: ProvisionerServiceStub, customer: Customer, token: str = ""
) -> pb2.DeleteTenantResponse:
    return await provisioner.DeleteTenant(
        pb2.DeleteTenantRequest(certificate_token=token), metadata=bearer(customer.key)
    )


async def test_a_tenant_is_cut_off_when_the_call_returns_and_nothing_is_left_in_the_end(
    mesh: Mesh, provisioner: ProvisionerServiceStub
) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    deployment, kept = await mesh.deployment(customer), await mesh.deployment(other, mcp=False)
    key = await mesh.key(customer, deployment.deployment_id)
    lender = Lender(mesh, customer)
    connection_id = await lender.connection(exclusive=True)
    await lender.bind(deployment.deployment_id, connection_id)
    await provisioner.PutSecret(
        pb2.PutSecretRequest(deployment_id=deployment.deployment_id, name="API", value="s3cr3t"),
        metadata=bearer(customer.key),
    )
    database = await provisioner.GetDatabaseConnection(
        pb2.GetDatabaseConnectionRequest(deployment_id=deployment.deployment_id),
        metadata=bearer(customer.key),
    )
    backed_up = await provisioner.CreateBackup(
        pb2.CreateBackupRequest(request_id=fresh_id(), deployment_id=deployment.deployment_id),
        metadata=bearer(customer.key),
    )
    done = await mesh.finished(customer, backed_up.operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED, done
    assert copies(mesh, backed_up.backup.backup_id)
    deleted = await delete_tenant(provisioner, customer, TOKEN)
    assert deleted.certificate_token == TOKEN
    assert deleted.operation.kind == pb2.OPERATION_KIND_DELETE_TENANT

    auth = mesh.stub(AuthServiceStub, "auth")
    for dead in (customer.key, key.key):
        with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
            await provisioner.GetDeployment(
                pb2.GetDeploymentRequest(deployment_id=deployment.deployment_id),
                metadata=bearer(dead),
            )
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await auth.GetTenant(auth_pb2.GetTenantRequest(), metadata=bearer(customer.key))
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await lender.credentials.Vend(credentials_pb2.VendRequest(), metadata=bearer(key.key))
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await delete_tenant(provisioner, customer, TOKEN)
    async with below(mesh, "app_proxy") as rows:
        hosts = await rows.fetch("SELECT host FROM routes WHERE host = $1", deployment.host)
    assert hosts == []

    document = await verified(provisioner, await certified(provisioner, TOKEN))
    assert (document["kind"], document["sub"]) == ("tenant", customer.tenant_id)
    kinds = {one["kind"] for one in document["resources"]}
    assert kinds >= {
        "keys",
        "route",
        "loans",
        "counters",
        "database",
        "secrets",
        "backups",
    }
    assert {one["deployment_id"] for one in document["resources"]} == {deployment.deployment_id}
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await asyncpg.connect(database.uri, timeout=5)
    assert not (reachable_home(mesh.home) / deployment.deployment_id).exists()
    assert not copies(mesh, backed_up.backup.backup_id)
    names = [customer.tenant_id, deployment.deployment_id, deployment.host, connection_id]
    left = {
        service: found
        for service in mesh.running
        if (found := await rows_naming(mesh, service, names))
    }
    # What stays of it is that it was: a row in each service that has to refuse it for ever.
    assert {table for found in left.values() for table in found} == {"tombstones", "erasures"}, left
    assert all(count == 1 for found in left.values() for count in found.values()), left
    assert [one["connection_id"] for one in document["unrevoked_grants"]] == [connection_id]
    got = await provisioner.GetDeployment(
        pb2.GetDeploymentRequest(deployment_id=kept.deployment_id), metadata=bearer(other.key)
    )
    assert got.deployment.state == pb2.DEPLOYMENT_STATE_READY


async def test_what_cannot_be_destroyed_keeps_the_deletion_open_and_uncertified(
    mesh: Mesh, provisioner: ProvisionerServiceStub
) -> None:
    customer = await mesh.customer()
    deployment = await mesh.deployment(customer, mcp=False)
    # A file where the server's folder is moved to before it is removed: nobody removes it for us.
    obstacle = reachable_home(mesh.home) / f".{deployment.deployment_id}.doomed"
    obstacle.touch()
    request = pb2.DeleteDeploymentRequest(deployment_id=deployment.deployment_id)
    deleted = await provisioner.DeleteDeployment(request, metadata=bearer(customer.key))
    token = deleted.certificate_token
    answer = await stuck(provisioner, token)
    assert answer.state == pb2.OPERATION_STATE_RUNNING
    assert answer.certificate == ""
    (left,) = answer.remainders
    assert left.deployment_id == deployment.deployment_id
    assert left.kind == pb2.RESOURCE_KIND_DATABASE
    shown = await provisioner.GetDeployment(
        pb2.GetDeploymentRequest(deployment_id=deployment.deployment_id),
        metadata=bearer(customer.key),
    )
    states = {one.kind: (one.state, one.reason) for one in shown.deployment.resources}
    assert states[pb2.RESOURCE_KIND_DATABASE] == (pb2.RESOURCE_STATE_GOING, left.message)
    # It holds up nothing else.
    assert states[pb2.RESOURCE_KIND_KEYS][0] == pb2.RESOURCE_STATE_GONE
    assert states[pb2.RESOURCE_KIND_COUNTERS][0] == pb2.RESOURCE_STATE_GONE
    assert "database" in shown.deployment.last_operation.message
    obstacle.unlink()
    document = await verified(provisioner, await certified(provisioner, token))
    times = {one["kind"]: one for one in document["resources"]}
    gone = {kind: datetime.fromisoformat(one["destroyed_at"]) for kind, one in times.items()}
    assert gone["database"] == max(gone.values())
    assert (await provisioner.DeleteDeployment(request, metadata=bearer(customer.key))) == (
        pb2.DeleteDeploymentResponse(
            operation=(
                await provisioner.GetOperation(
                    pb2.GetOperationRequest(operation_id=deleted.operation.operation_id),
                    metadata=bearer(customer.key),
                )
            ).operation,
            certificate_token=token,
        )
    )


async def stuck(
    provisioner: ProvisionerServiceStub, token: str
) -> pb2.GetDeletionCertificateResponse:
    """Returns how far the deletion is, once it was tried in vain twice."""
    request = pb2.GetDeletionCertificateRequest(certificate_token=token)
    for _ in range(round(PATIENCE_SECONDS / 0.1)):
        answer = await provisioner.GetDeletionCertificate(request)
        if any(each.retries > 1 and each.message for each in answer.remainders):
            return answer
        assert not answer.certificate
        await asyncio.sleep(0.1)
    raise AssertionError(f"not stuck: {answer}")


async def test_a_stuck_deployment_keeps_its_tenants_deletion_open(
    mesh: Mesh, provisioner: ProvisionerServiceStub
) -> None:
    customer = await mesh.customer()
    one, two = [
        await mesh.deployment(customer, mcp=False, database=database) for database in (True, False)
    ]
    obstacle = reachable_home(mesh.home) / f".{one.deployment_id}.doomed"
    obstacle.touch()
    token = (await delete_tenant(provisioner, customer)).certificate_token
    answer = await stuck(provisioner, token)
    assert answer.state == pb2.OPERATION_STATE_RUNNING
    assert not answer.certificate
    assert {(each.deployment_id, each.kind) for each in answer.remainders if each.message} == {
        (one.deployment_id, pb2.RESOURCE_KIND_DATABASE)
    }
    obstacle.unlink()
    document = await verified(provisioner, await certified(provisioner, token))
    found = {each["deployment_id"] for each in document["resources"]}
    assert found == {one.deployment_id, two.deployment_id}


async def test_of_many_who_delete_a_tenant_at_once_all_mean_one_deletion(
    mesh: Mesh, provisioner: ProvisionerServiceStub
) -> None:
    customer = await mesh.customer()
    answers = await asyncio.gather(
        *(delete_tenant(provisioner, customer) for _ in range(4)), return_exceptions=True
    )
    answered = [one for one in answers if isinstance(one, pb2.DeleteTenantResponse)]
    assert answered
    assert len({(one.operation.operation_id, one.certificate_token) for one in answered}) == 1
    document = await verified(
        provisioner, await certified(provisioner, answered[0].certificate_token)
    )
    assert document["resources"] == []
    assert document["jti"] == answered[0].operation.operation_id
