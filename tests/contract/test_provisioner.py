"""provisioner over the wire: success, each refusal, each bad input."""

import asyncio

import asyncpg
import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused


@pytest.fixture(scope="session")
def provisioner(mesh: Mesh) -> ProvisionerServiceStub:
    return mesh.stub(ProvisionerServiceStub, "provisioner")


@pytest.fixture(scope="session")
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


@pytest.fixture(scope="session")
async def ready(mesh: Mesh, customer: Customer) -> pb2.Deployment:
    return await mesh.deployment(customer, name="Field Notes!")


async def test_a_deployment_is_made_and_found_again(
    provisioner: ProvisionerServiceStub, customer: Customer, ready: pb2.Deployment
) -> None:
    assert ready.deployment_id.startswith("dep_")
    assert ready.host.startswith("field-notes-")
    assert ready.host.endswith(".localhost")
    got = await provisioner.GetDeployment(
        pb2.GetDeploymentRequest(deployment_id=ready.deployment_id), metadata=bearer(customer.key)
    )
    assert got.deployment.state == pb2.DEPLOYMENT_STATE_READY
    assert (got.deployment.name, got.deployment.host) == ("Field Notes!", ready.host)
    assert got.deployment.mcp
    assert got.deployment.database


async def test_two_creates_with_one_request_id_at_once_make_one_deployment(
    mesh: Mesh, provisioner: ProvisionerServiceStub
) -> None:
    customer = await mesh.customer()
    request = pb2.CreateDeploymentRequest(request_id=fresh_id(), name="twin", database=True)
    answers = await asyncio.gather(
        *(provisioner.CreateDeployment(request, metadata=bearer(customer.key)) for _ in range(5))
    )
    assert len({answer.deployment.deployment_id for answer in answers}) == 1
    assert len({answer.operation.operation_id for answer in answers}) == 1
    await mesh.finished(customer, answers[0].operation.operation_id)
    listed = await provisioner.ListDeployments(
        pb2.ListDeploymentsRequest(), metadata=bearer(customer.key)
    )
    assert len(listed.deployments) == 1
    request.name = "other"
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await provisioner.CreateDeployment(request, metadata=bearer(customer.key))


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("request_id", pb2.CreateDeploymentRequest(name="a", database=True)),
        ("request_id", pb2.CreateDeploymentRequest(request_id="r" * 65, name="a", database=True)),
        ("name", pb2.CreateDeploymentRequest(request_id="r", database=True)),
        ("name", pb2.CreateDeploymentRequest(request_id="r", name=" ", database=True)),
        ("name", pb2.CreateDeploymentRequest(request_id="r", name="n" * 64, database=True)),
        ("name", pb2.CreateDeploymentRequest(request_id="r", name="a\x00", database=True)),
        ("mcp", pb2.CreateDeploymentRequest(request_id="r", name="a", mcp=True)),
    ],
)
async def test_a_deployment_with_a_bad_field_is_refused_by_name(
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    field: str,
    request_: pb2.CreateDeploymentRequest,
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await provisioner.CreateDeployment(request_, metadata=bearer(customer.key))


async def test_a_tenant_has_no_more_deployments_than_its_limit(mesh_of_two: Mesh) -> None:
    customer = await mesh_of_two.customer()
    stub = mesh_of_two.stub(ProvisionerServiceStub, "provisioner")
    request = pb2.CreateDeploymentRequest(name="one")
    for number in range(2):
        request.request_id = str(number)
        await stub.CreateDeployment(request, metadata=bearer(customer.key))
    request.request_id = "third"
    with expect_refused("RESOURCE_EXHAUSTED", "DEPLOYMENT_LIMIT"):
        await stub.CreateDeployment(request, metadata=bearer(customer.key))


async def test_deployments_are_listed_in_pages_newest_first(
    mesh: Mesh, provisioner: ProvisionerServiceStub
) -> None:
    customer = await mesh.customer()
    made = [await mesh.deployment(customer, database=False, mcp=False) for _ in range(3)]
    found: list[str] = []
    token = ""
    while True:
        page = await provisioner.ListDeployments(
            pb2.ListDeploymentsRequest(page_size=2, page_token=token),
            metadata=bearer(customer.key),
        )
        found += [deployment.deployment_id for deployment in page.deployments]
        token = page.next_page_token
        if not token:
            break
    assert found == [deployment.deployment_id for deployment in reversed(made)]
    for bad in ("nonsense", "AAAA"):
        with expect_refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", field="page_token"):
            await provisioner.ListDeployments(
                pb2.ListDeploymentsRequest(page_token=bad), metadata=bearer(customer.key)
            )
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="page_size"):
        await provisioner.ListDeployments(
            pb2.ListDeploymentsRequest(page_size=-1), metadata=bearer(customer.key)
        )


async def test_an_operation_is_watched_to_its_end_and_read_after(
    mesh: Mesh, provisioner: ProvisionerServiceStub
) -> None:
    customer = await mesh.customer()
    created = await provisioner.CreateDeployment(
        pb2.CreateDeploymentRequest(request_id=fresh_id(), name="watched", database=True),
        metadata=bearer(customer.key),
    )
    assert created.deployment.state == pb2.DEPLOYMENT_STATE_CREATING
    seen = [
        change.operation.state
        async for change in provisioner.WaitOperation(
            pb2.WaitOperationRequest(operation_id=created.operation.operation_id),
            metadata=bearer(customer.key),
            timeout=30,
        )
    ]
    assert seen[-1] == pb2.OPERATION_STATE_SUCCEEDED
    assert set(seen[:-1]) <= {pb2.OPERATION_STATE_RUNNING}
    got = await provisioner.GetOperation(
        pb2.GetOperationRequest(operation_id=created.operation.operation_id),
        metadata=bearer(customer.key),
    )
    assert got.operation.state == pb2.OPERATION_STATE_SUCCEEDED
    assert got.operation.HasField("end_time")
    assert got.operation.kind == pb2.OPERATION_KIND_CREATE


async def test_a_deleted_deployment_is_gone_with_its_server_and_deleting_twice_is_one(
    mesh: Mesh, provisioner: ProvisionerServiceStub
) -> None:
    customer = await mesh.customer()
    deployment = await mesh.deployment(customer)
    reader = await connection(provisioner, customer, deployment.deployment_id)
    request = pb2.DeleteDeploymentRequest(deployment_id=deployment.deployment_id)
    first = await provisioner.DeleteDeployment(request, metadata=bearer(customer.key))
    second = await provisioner.DeleteDeployment(request, metadata=bearer(customer.key))
    assert first.operation.operation_id == second.operation.operation_id
    done = await mesh.finished(customer, first.operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED
    # Its port may be listened on for a moment longer, by whoever knows that it is gone.
    with pytest.raises((ConnectionRefusedError, asyncpg.CannotConnectNowError)):
        await asyncpg.connect(reader.uri)
    listed = await provisioner.ListDeployments(
        pb2.ListDeploymentsRequest(), metadata=bearer(customer.key)
    )
    assert list(listed.deployments) == []


@pytest.mark.promise("P-01")
async def test_two_deployments_of_one_tenant_are_two_servers_with_two_passwords(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer, ready: pb2.Deployment
) -> None:
    other = await mesh.deployment(customer)
    one = await connection(provisioner, customer, ready.deployment_id)
    two = await connection(provisioner, customer, other.deployment_id)
    assert one.port != two.port
    assert one.password != two.password
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(
            host=one.host, port=one.port, user=two.user, password=two.password, database="app"
        )
    for each in (one, two):
        reader = await asyncpg.connect(each.uri)
        try:
            assert await reader.fetchval("SELECT current_user") == "reader"
        finally:
            await reader.close()


async def test_the_writers_connection_needs_the_scope_to_write(
    mesh: Mesh,
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    ready: pb2.Deployment,
) -> None:
    narrow = await mesh.key(customer, ready.deployment_id, ("db:read",))
    writing = pb2.GetDatabaseConnectionRequest(role=pb2.DATABASE_ROLE_WRITER)
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await provisioner.GetDatabaseConnection(writing, metadata=bearer(narrow.key))
    full = await mesh.key(customer, ready.deployment_id)
    given = await provisioner.GetDatabaseConnection(writing, metadata=bearer(full.key))
    assert given.user == "writer_a"
    writing.role = 17  # type: ignore[assignment]
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="role"):
        await provisioner.GetDatabaseConnection(writing, metadata=bearer(full.key))


async def test_a_database_is_woken_by_its_tenant_and_by_its_own_deployment(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer, ready: pb2.Deployment
) -> None:
    named = pb2.WakeDatabaseRequest(deployment_id=ready.deployment_id)
    await provisioner.WakeDatabase(named, metadata=bearer(customer.key))
    own = await mesh.key(customer, ready.deployment_id)
    await provisioner.WakeDatabase(pb2.WakeDatabaseRequest(), metadata=bearer(own.key))
    other = await mesh.customer()
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await provisioner.WakeDatabase(named, metadata=bearer(other.key))
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="deployment_id"):
        await provisioner.WakeDatabase(pb2.WakeDatabaseRequest(), metadata=bearer(customer.key))


async def test_a_deployment_without_a_database_has_no_connection(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    bare = await mesh.deployment(customer, database=False, mcp=False)
    with expect_refused("FAILED_PRECONDITION", "RESOURCE_NOT_DECLARED"):
        await connection(provisioner, customer, bare.deployment_id)


@pytest.mark.promise("P-04")
async def test_a_deployments_key_reaches_its_own_database_and_no_other(
    mesh: Mesh,
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    ready: pb2.Deployment,
) -> None:
    sibling = await mesh.deployment(customer)
    key = await mesh.key(customer, sibling.deployment_id)
    own = await provisioner.GetDatabaseConnection(
        pb2.GetDatabaseConnectionRequest(), metadata=bearer(key.key)
    )
    theirs = await connection(provisioner, customer, sibling.deployment_id)
    assert own.uri == theirs.uri
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await provisioner.GetDatabaseConnection(
            pb2.GetDatabaseConnectionRequest(deployment_id=ready.deployment_id),
            metadata=bearer(key.key),
        )
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await provisioner.GetDeployment(
            pb2.GetDeploymentRequest(deployment_id=ready.deployment_id), metadata=bearer(key.key)
        )


async def test_an_id_that_is_missing_is_named(
    provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    metadata = bearer(customer.key)
    for field, calling in (
        ("deployment_id", provisioner.GetDeployment(pb2.GetDeploymentRequest(), metadata=metadata)),
        (
            "deployment_id",
            provisioner.DeleteDeployment(pb2.DeleteDeploymentRequest(), metadata=metadata),
        ),
        (
            "deployment_id",
            provisioner.GetDatabaseConnection(
                pb2.GetDatabaseConnectionRequest(), metadata=metadata
            ),
        ),
        ("operation_id", provisioner.GetOperation(pb2.GetOperationRequest(), metadata=metadata)),
    ):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
            await calling


async def connection(
    provisioner: ProvisionerServiceStub, customer: Customer, deployment_id: str
) -> pb2.GetDatabaseConnectionResponse:
    return await provisioner.GetDatabaseConnection(
        pb2.GetDatabaseConnectionRequest(deployment_id=deployment_id),
        metadata=bearer(customer.key),
        timeout=15,
    )
