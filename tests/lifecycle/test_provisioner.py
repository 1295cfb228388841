"""The provisioner through crashes: killed itself, its servers killed, its peers away."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import grpc
import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.local import LocalDriver, remove_home
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.postgres_process import ServerError
from services.provisioner.master_secret import read_master_secret
from services.provisioner.server import compose
from services.provisioner.settings import Settings
from services.shared.ids import new_deployment_id
from services.shared.postgres import connect
from tests import local_databases
from tests.conftest import StartMesh
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused

ROOT = Path(__file__).parents[2]
SWEEP_SECONDS = 0.3
MEMBERS = ("auth", "ratelimit", "credentials", "app_proxy", "provisioner")


@pytest.fixture(scope="module")
async def mesh(start_mesh: StartMesh) -> AsyncIterator[Mesh]:
    """A mesh of its own, whose provisioner sweeps often."""
    overrides = {"provisioner": {"sweep_seconds": SWEEP_SECONDS, "create_tries": 6}}
    home = None
    try:
        async with start_mesh(overrides, MEMBERS) as running:
            home = servers(running)
            yield running
    finally:
        if home is not None:
            await remove_home(home)


@pytest.fixture
def provisioner(mesh: Mesh) -> ProvisionerServiceStub:
    return mesh.stub(ProvisionerServiceStub, "provisioner")


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


def servers(mesh: Mesh) -> Path:
    return postgres_process.reachable_home(mesh.home)


def spares(mesh: Mesh) -> list[Path]:
    return list(servers(mesh).glob("*.spare"))


def server_pid(mesh: Mesh, deployment_id: str) -> int | None:
    server = postgres_process.running(servers(mesh) / deployment_id)
    return None if server is None else server.pid


def left_of(mesh: Mesh, deployment_id: str) -> list[str]:
    return [path.name for path in servers(mesh).iterdir() if deployment_id in path.name]


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def without(mesh: Mesh, service: str) -> AsyncIterator[None]:
    await mesh.stop(service)
    try:
        yield
    finally:
        await mesh.start(service)


def wanted(name: str = "notes") -> pb2.CreateDeploymentRequest:
    return pb2.CreateDeploymentRequest(request_id=fresh_id(), name=name, mcp=True, database=True)


async def connection(
    mesh: Mesh, customer: Customer, deployment_id: str
) -> pb2.GetDatabaseConnectionResponse:
    return await mesh.stub(ProvisionerServiceStub, "provisioner").GetDatabaseConnection(
        pb2.GetDatabaseConnectionRequest(
            deployment_id=deployment_id, role=pb2.DATABASE_ROLE_WRITER
        ),
        metadata=bearer(customer.key),
        timeout=PATIENCE_SECONDS,
    )


def environment(settings: Settings) -> dict[str, str]:
    values = settings.model_dump(mode="json", exclude_none=True)
    return {f"BULKHEAD_{name.upper()}": str(value) for name, value in values.items()}


@asynccontextmanager
async def process(mesh: Mesh) -> AsyncIterator[asyncio.subprocess.Process]:
    """The provisioner as a process of its own, in place of the one in this process."""
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.provisioner"),
        cwd=ROOT,
        env=os.environ | environment(settings),
    )
    try:
        yield running
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


@pytest.mark.parametrize("milliseconds", [0, 20, 50, 90, 140, 200])
async def test_a_create_outlives_the_provisioner_that_began_it(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer, milliseconds: int
) -> None:
    async with without(mesh, "provisioner"), process(mesh) as first:
        created = await provisioner.CreateDeployment(
            wanted(),
            metadata=bearer(customer.key),
            wait_for_ready=True,
            timeout=PATIENCE_SECONDS,
        )
        await asyncio.wait([asyncio.ensure_future(first.wait())], timeout=milliseconds / 1000)
        first.kill()
        await first.wait()
    operation = await mesh.finished(customer, created.operation.operation_id)
    assert operation.state == pb2.OPERATION_STATE_SUCCEEDED
    deployment_id = created.deployment.deployment_id
    found = await connection(mesh, customer, deployment_id)
    session = await asyncpg.connect(found.uri)
    assert await session.fetchval("SELECT current_user") == "writer"
    await session.close()
    names = {deployment_id, f".{deployment_id}.lock"}
    await eventually(lambda: set(left_of(mesh, deployment_id)) == names)


async def test_servers_outlive_the_provisioner_and_are_adopted(
    mesh: Mesh, customer: Customer
) -> None:
    deployment = await mesh.deployment(customer)
    before = await connection(mesh, customer, deployment.deployment_id)
    server = postgres_process.running(servers(mesh) / deployment.deployment_id)
    assert server is not None
    pid = server.pid
    # To the server itself, for the port in the string is the provisioner's own.
    session = await asyncpg.connect(before.uri, port=server.port)
    async with without(mesh, "provisioner"):
        assert await session.fetchval("SELECT 1") == 1
    assert await connection(mesh, customer, deployment.deployment_id) == before
    assert server_pid(mesh, deployment.deployment_id) == pid
    assert await session.fetchval("SELECT 1") == 1
    await session.close()


async def test_a_killed_server_is_back_for_the_next_who_asks(
    mesh: Mesh, customer: Customer
) -> None:
    deployment = await mesh.deployment(customer)
    before = await connection(mesh, customer, deployment.deployment_id)
    session = await asyncpg.connect(before.uri)
    await session.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await session.close()
    kill_server(mesh, deployment.deployment_id)
    answers = await asyncio.gather(
        *(connection(mesh, customer, deployment.deployment_id) for _ in range(8))
    )
    assert {answer.uri for answer in answers} == {before.uri}
    session = await asyncpg.connect(before.uri)
    assert await session.fetchval("SELECT answer FROM kept") == 42
    await session.close()


async def test_a_killed_server_is_back_though_nobody_asks(mesh: Mesh, customer: Customer) -> None:
    deployment = await mesh.deployment(customer)
    killed = kill_server(mesh, deployment.deployment_id)
    await eventually(lambda: server_pid(mesh, deployment.deployment_id) not in (None, killed))


def kill_server(mesh: Mesh, deployment_id: str) -> int:
    pid = server_pid(mesh, deployment_id)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


async def test_deleting_while_it_is_made_leaves_nothing(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    created = await provisioner.CreateDeployment(wanted(), metadata=bearer(customer.key))
    deployment_id = created.deployment.deployment_id
    deleted = await provisioner.DeleteDeployment(
        pb2.DeleteDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    done = await mesh.finished(customer, deleted.operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED
    making = await mesh.finished(customer, created.operation.operation_id)
    assert making.end_time.ToDatetime() <= done.end_time.ToDatetime()
    await eventually(lambda: left_of(mesh, deployment_id) == [])
    got = await provisioner.GetDeployment(
        pb2.GetDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    assert got.deployment.state == pb2.DEPLOYMENT_STATE_DELETED
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await connection(mesh, customer, deployment_id)


async def test_a_create_waits_for_the_front_door_and_says_so(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    async with without(mesh, "app_proxy"):
        created = await provisioner.CreateDeployment(wanted(), metadata=bearer(customer.key))
        operation = created.operation
        async with asyncio.timeout(PATIENCE_SECONDS):
            while operation.retries == 0:
                operation = await latest(provisioner, customer, created.operation.operation_id)
        assert operation.state == pb2.OPERATION_STATE_RUNNING
        assert operation.message == "a service that is needed is away"
        with expect_refused("UNAVAILABLE", "DEPLOYMENT_NOT_READY"):
            await connection(mesh, customer, created.deployment.deployment_id)
    done = await mesh.finished(customer, created.operation.operation_id)
    assert (done.state, done.message) == (pb2.OPERATION_STATE_SUCCEEDED, "")


async def latest(
    provisioner: ProvisionerServiceStub, customer: Customer, operation_id: str
) -> pb2.Operation:
    """Returns the operation as it is, a moment later."""
    await asyncio.sleep(0.05)
    answer = await provisioner.GetOperation(
        pb2.GetOperationRequest(operation_id=operation_id), metadata=bearer(customer.key)
    )
    return answer.operation


async def test_a_create_that_never_succeeds_is_given_up_and_can_be_deleted(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    async with without(mesh, "app_proxy"):
        created = await provisioner.CreateDeployment(wanted(), metadata=bearer(customer.key))
        done = await mesh.finished(customer, created.operation.operation_id)
    deployment_id = created.deployment.deployment_id
    assert done.state == pb2.OPERATION_STATE_FAILED
    assert done.message == "a service that is needed is away"
    with expect_refused("FAILED_PRECONDITION", "OPERATION_FAILED"):
        await connection(mesh, customer, deployment_id)
    deleted = await delete(provisioner, customer, deployment_id)
    gone = await mesh.finished(customer, deleted.operation.operation_id)
    assert gone.state == pb2.OPERATION_STATE_SUCCEEDED


async def delete(
    provisioner: ProvisionerServiceStub, customer: Customer, deployment_id: str
) -> pb2.DeleteDeploymentResponse:
    """Asks until it is answered: a service that came back is noticed within a second."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await provisioner.DeleteDeployment(
                    pb2.DeleteDeploymentRequest(deployment_id=deployment_id),
                    metadata=bearer(customer.key),
                )
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 others fail here
                await asyncio.sleep(0.1)


async def test_a_delete_waits_until_what_was_lent_to_the_deployment_is_ended(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    deployment = await mesh.deployment(customer)
    credentials = mesh.stub(CredentialsServiceStub, "credentials")
    made = await credentials.CreateConnection(
        credentials_pb2.CreateConnectionRequest(
            request_id=fresh_id(),
            provider="github",
            name="notes",
            static_token=credentials_pb2.StaticToken(token="t"),
        ),
        metadata=bearer(customer.key),
    )
    await credentials.BindConnection(
        credentials_pb2.BindConnectionRequest(
            deployment_id=deployment.deployment_id, connection_id=made.connection.connection_id
        ),
        metadata=bearer(customer.key),
    )
    async with without(mesh, "credentials"):
        # Keys and route are dead when this is answered, whoever else is away.
        deleted = await delete(provisioner, customer, deployment.deployment_id)
        operation = deleted.operation
        async with asyncio.timeout(PATIENCE_SECONDS):
            while operation.retries == 0:
                operation = await latest(provisioner, customer, operation.operation_id)
        assert operation.state == pb2.OPERATION_STATE_RUNNING
        assert operation.message == "loans: a service that is needed is away"
    done = await mesh.finished(customer, deleted.operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED
    left = await credentials.ListBindings(
        credentials_pb2.ListBindingsRequest(), metadata=bearer(customer.key)
    )
    assert not left.bindings


@pytest.mark.parametrize("step", ["retiring", "unrouting", "destroying"])
async def test_a_delete_that_an_earlier_version_began_goes_on(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer, step: str
) -> None:
    deployment = await mesh.deployment(customer, database=False, mcp=False)
    async with without(mesh, "app_proxy"):
        with contextlib.suppress(grpc.aio.AioRpcError):
            await provisioner.DeleteDeployment(
                pb2.DeleteDeploymentRequest(deployment_id=deployment.deployment_id),
                metadata=bearer(customer.key),
            )
        await set_step(mesh, deployment.deployment_id, step)
    deleted = await delete(provisioner, customer, deployment.deployment_id)
    done = await mesh.finished(customer, deleted.operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED


async def set_step(mesh: Mesh, deployment_id: str, step: str) -> None:
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    connection = await connect(settings)
    try:
        await connection.execute("SET ROLE provisioner_service")
        changed = await connection.execute(
            "UPDATE operations SET step = $2, next_try_at = now()"
            " WHERE deployment_id = $1 AND kind = 'delete'",
            deployment_id,
            step,
        )
        assert changed == "UPDATE 1"
    finally:
        await connection.close()


async def test_a_delete_that_cannot_cut_off_at_once_says_so_and_goes_on_by_itself(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    deployment = await mesh.deployment(customer)
    request = pb2.DeleteDeploymentRequest(deployment_id=deployment.deployment_id)
    async with without(mesh, "app_proxy"):
        with expect_refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await provisioner.DeleteDeployment(request, metadata=bearer(customer.key))
    await eventually(lambda: left_of(mesh, deployment.deployment_id) == [])
    repeated = await delete(provisioner, customer, deployment.deployment_id)
    done = await mesh.finished(customer, repeated.operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED


async def test_a_server_that_no_row_knows_is_removed(mesh: Mesh) -> None:
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    secret = read_master_secret(settings.database_secret_file)
    driver = LocalDriver(servers(mesh), secret, PortRange(20_000, 31_999), 30_000)
    stray = new_deployment_id()
    async with without(mesh, "provisioner"):
        await driver.ensure(local_databases.wanted(stray))
        assert server_pid(mesh, stray) is not None
    await eventually(lambda: left_of(mesh, stray) == [])
    assert server_pid(mesh, stray) is None


async def test_a_spare_is_ready_before_anyone_asks_and_again_after_a_create(
    mesh: Mesh, customer: Customer
) -> None:
    await eventually(lambda: len(spares(mesh)) == 1)
    was = spares(mesh)[0].stat().st_ino
    deployment = await mesh.deployment(customer)
    assert (servers(mesh) / deployment.deployment_id).stat().st_ino == was
    await eventually(lambda: len(spares(mesh)) == 1)


async def test_a_spare_outlives_the_provisioner_and_its_sweeps(mesh: Mesh) -> None:
    await eventually(lambda: len(spares(mesh)) == 1)
    was = spares(mesh)[0].stat().st_ino
    stray = servers(mesh) / new_deployment_id()
    async with without(mesh, "provisioner"):
        stray.mkdir()
    await eventually(lambda: not stray.exists())
    assert [spare.stat().st_ino for spare in spares(mesh)] == [was]


async def test_a_provisioner_does_not_touch_the_servers_of_another(
    mesh: Mesh, start_mesh: StartMesh, customer: Customer
) -> None:
    deployment = await mesh.deployment(customer)
    async with start_mesh({}, ("auth", "provisioner")) as other:
        settings = other.settings["provisioner"]
        assert isinstance(settings, Settings)
        theirs = settings.model_copy(update={"servers_home": mesh.home})
        with pytest.raises(ServerError):
            async with compose(theirs):
                pass
    assert server_pid(mesh, deployment.deployment_id) is not None
