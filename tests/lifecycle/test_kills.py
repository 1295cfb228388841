"""The provisioner dies at every boundary of every step: all ends as it was wanted (P-39).

In each test one operation goes on although whoever works on it is killed at every boundary that the
plan has, one after another; every replica that takes over does so with what the last one left.
Then the tenant is deleted, and nothing is left.
"""

import asyncio
import secrets
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import asyncpg
import grpc
import httpx2
import mcp
import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from google.protobuf.duration_pb2 import Duration
from mcp.client.streamable_http import streamable_http_client

from deploy.local.ports import free_ports
from deploy.local.postgres import MeshPostgres
from deploy.local.valkey import ValkeyServer
from services.provisioner.domain import OperationKind, Step
from services.provisioner.settings import Settings
from tests.apps import App
from tests.certificates import published_keys, verified
from tests.conftest import StartMesh
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id
from tests.provisioner_kills import (
    Kills,
    boundaries_of,
    insisted,
    kills_in,
    provisioner,
    steps_of,
    until,
)
from tests.s3 import Storage
from tests.scan import Scan, scan_of
from tests.scan_machine import processes_left
from tests.scan_rows import Names

pytestmark = pytest.mark.promise("P-39")
LONG = Duration(seconds=3_600)


@dataclass(frozen=True)
class Place:
    """A mesh whose provisioner dies, and what sees whatever it leaves."""

    mesh: Mesh
    kills: Kills
    scan: Scan
    port: int

    @property
    def stub(self) -> ProvisionerServiceStub:
        return self.mesh.stub(ProvisionerServiceStub, "provisioner")


@dataclass
class Life:
    """A tenant with one deployment, from its beginning to its end."""

    place: Place
    customer: Customer
    app: App
    # Written as content wherever content can be written.
    word: str = field(default_factory=lambda: f"word-{secrets.token_hex(12)}")
    others: list[pb2.Deployment] = field(default_factory=list)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.customer.key)

    async def operation(self, operation_id: str) -> pb2.Operation:
        answer = await self.place.stub.GetOperation(
            pb2.GetOperationRequest(operation_id=operation_id), metadata=self.metadata
        )
        return answer.operation

    async def done(self, operation: pb2.Operation) -> None:
        """Returns when it has succeeded."""

        async def ended() -> bool:
            nonlocal operation
            operation = await self.operation(operation.operation_id)
            return operation.state != pb2.OPERATION_STATE_RUNNING

        await until(ended)
        assert operation.state == pb2.OPERATION_STATE_SUCCEEDED, operation

    async def state(self) -> tuple[str, dict[str, str]]:
        got = await insisted(self.app.get)
        resources = await insisted(self.app.resources)
        return pb2.DeploymentState.Name(got.state).removeprefix("DEPLOYMENT_STATE_"), resources

    async def write(self) -> None:
        """Writes the word into the database."""
        async with self.app.writer() as writer:
            await writer.execute("CREATE TABLE kept (word text)")
            await writer.execute("INSERT INTO kept VALUES ($1)", self.word)

    async def words(self, deployment_id: str) -> list[str]:
        """Returns what is kept in a deployment's database."""
        async with replace(self.app, deployment_id=deployment_id).writer() as writer:
            return [row["word"] for row in await writer.fetch("SELECT word FROM kept")]

    async def names(self) -> Names:
        """Returns all that nothing may be left of when the tenant is gone."""
        answer = await self.place.stub.ListDeployments(
            pb2.ListDeploymentsRequest(), metadata=self.metadata
        )
        made = [*answer.deployments, *self.others]
        return Names(
            self.customer.tenant_id,
            deployments=frozenset(each.deployment_id for each in made),
            hosts=frozenset(each.host for each in made),
            keys=frozenset({self.customer.key_id}),
            words=frozenset({self.word}),
        )

    async def end(self) -> None:
        """Deletes the tenant; nothing is left."""
        names = await self.names()
        token = secrets.token_hex(32)
        await self.delete_tenant(token)
        await self.certified(token, names)

    async def delete_tenant(self, token: str) -> None:
        """Returns when the deletion has begun; then its key opens nothing any more."""
        request = pb2.DeleteTenantRequest(certificate_token=token)
        try:
            await insisted(lambda: self.place.stub.DeleteTenant(request, metadata=self.metadata))
        except grpc.aio.AioRpcError as error:
            # The first answer was lost with whoever would have given it, and the key is dead.
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise

    async def certified(self, token: str, names: Names) -> None:
        """Returns when the certificate is there, names every deployment, and nothing is left."""
        document = await verified(self.place.stub, await certificate(self.place, token))
        assert document["sub"] == names.tenant
        named = {one["deployment_id"] for one in document["resources"]}
        assert named >= names.deployments - {each.deployment_id for each in self.others}
        assert await self.place.scan.settled(names) == []
        assert self.place.kills.shared() == []


async def certificate(place: Place, token: str) -> str:
    request = pb2.GetDeletionCertificateRequest(certificate_token=token)
    found = ""

    async def issued() -> bool:
        nonlocal found
        found = (await place.stub.GetDeletionCertificate(request)).certificate
        return bool(found)

    await until(issued)
    return found


@pytest.fixture(scope="module")
async def place(
    start_mesh: StartMesh, s3: Storage, postgres: MeshPostgres, valkey: ValkeyServer
) -> AsyncIterator[Place]:
    (port,) = free_ports(1)
    own = {
        "provisioner": {**(await s3.settings()), "sweep_seconds": 0.5, "heartbeat_seconds": 1.0},
        "app_proxy": {"http_listen": f"127.0.0.1:{port}"},
    }
    async with start_mesh(own) as mesh:
        await mesh.stop("provisioner")
        settings = mesh.settings["provisioner"]
        assert isinstance(settings, Settings)
        kills = kills_in(mesh.home / "kills")
        scan = await scan_of(mesh, postgres, valkey, s3)
        async with provisioner(settings, kills):
            yield Place(mesh, kills, scan, port)


def wanted(*, everything: bool = False) -> pb2.CreateDeploymentRequest:
    return pb2.CreateDeploymentRequest(
        request_id=fresh_id(),
        name="mortal",
        mcp=True,
        database=True,
        bucket=everything,
        bootstrap_admin=everything,
    )


async def begin(place: Place, *, everything: bool = False) -> tuple[Life, pb2.Operation]:
    """Returns a new tenant, whose first deployment is being made."""
    customer = await place.mesh.customer()
    request = wanted(everything=everything)
    created = await insisted(
        lambda: place.stub.CreateDeployment(request, metadata=bearer(customer.key))
    )
    made = created.deployment
    app = App(place.mesh, customer, made.deployment_id, made.host)
    return Life(place, customer, app), created.operation


async def a_life(place: Place, *, everything: bool = False) -> Life:
    """Returns a new tenant whose first deployment is ready, and holds the word."""
    life, operation = await begin(place, everything=everything)
    await life.done(operation)
    await life.write()
    return life


def assert_died_everywhere(kills: Kills, kind: OperationKind) -> None:
    assert kills.died() == boundaries_of(kind)


def test_every_step_there_is_belongs_to_a_plan() -> None:
    assert {step for kind in OperationKind for step in steps_of(kind)} == set(Step)


async def test_a_create_killed_everywhere_ends_ready_to_be_used(place: Place) -> None:
    with place.kills.armed(OperationKind.CREATE):
        life, operation = await begin(place, everything=True)
        await life.done(operation)
    assert_died_everywhere(place.kills, OperationKind.CREATE)
    state, resources = await life.state()
    assert (state, set(resources.values())) == ("READY", {"READY"})
    await life.write()
    assert await life.words(life.app.deployment_id) == [life.word]
    await life.end()


async def test_a_branch_killed_everywhere_ends_with_all_that_its_source_has(place: Place) -> None:
    life = await a_life(place)
    request = pb2.CreateBranchRequest(
        request_id=fresh_id(), deployment_id=life.app.deployment_id, name="branch", mcp=True
    )
    with place.kills.armed(OperationKind.CREATE):
        made = await insisted(lambda: place.stub.CreateBranch(request, metadata=life.metadata))
        await life.done(made.operation)
    assert_died_everywhere(place.kills, OperationKind.CREATE)
    branch = made.deployment.deployment_id
    assert await life.words(branch) == [life.word]
    async with replace(life.app, deployment_id=branch).writer() as writer:
        await writer.execute("DELETE FROM kept")
    assert await life.words(life.app.deployment_id) == [life.word]
    await life.end()


async def test_a_backup_killed_everywhere_ends_whole_and_can_be_restored(place: Place) -> None:
    life = await a_life(place)
    request = pb2.CreateBackupRequest(
        request_id=fresh_id(),
        deployment_id=life.app.deployment_id,
        target=pb2.BACKUP_TARGET_FILE,
    )
    with place.kills.armed(OperationKind.BACK_UP):
        made = await insisted(lambda: place.stub.CreateBackup(request, metadata=life.metadata))
        await life.done(made.operation)
    assert_died_everywhere(place.kills, OperationKind.BACK_UP)
    restored = await insisted(
        lambda: place.stub.RestoreBackup(
            pb2.RestoreBackupRequest(
                request_id=request.request_id, backup_id=made.backup.backup_id, name="restored"
            ),
            metadata=life.metadata,
        )
    )
    await life.done(restored.operation)
    assert await life.words(restored.deployment.deployment_id) == [life.word]
    await life.end()


async def test_a_suspension_killed_everywhere_ends_shut_and_a_resumption_open(
    place: Place,
) -> None:
    life = await a_life(place)
    with place.kills.armed(OperationKind.SUSPEND):
        await life.done(await insisted(life.app.suspend))
    assert_died_everywhere(place.kills, OperationKind.SUSPEND)
    state, resources = await life.state()
    assert (state, resources["DATABASE"]) == ("SUSPENDED", "SUSPENDED")
    assert await life.app.at_the_door() == 402
    assert await asyncio.to_thread(processes_left, [life.app.deployment_id]) == []
    with place.kills.armed(OperationKind.RESUME):
        await life.done(await insisted(life.app.resume))
    assert_died_everywhere(place.kills, OperationKind.RESUME)
    assert (await life.state())[0] == "READY"
    assert await life.app.at_the_door() == 401
    assert await life.words(life.app.deployment_id) == [life.word]
    await life.end()


@pytest.mark.promise("P-02")
async def test_a_rotation_killed_everywhere_fails_no_query_and_ends_the_passwords_of_before(
    place: Place,
) -> None:
    life = await a_life(place)
    before = await life.app.way_in()
    async with asking(life) as steady:
        request = pb2.RotateDatabaseCredentialsRequest(
            request_id=fresh_id(), deployment_id=life.app.deployment_id, overlap=LONG
        )
        with place.kills.armed(OperationKind.ROTATE):
            rotation = await insisted(
                lambda: place.stub.RotateDatabaseCredentials(request, metadata=life.metadata)
            )
            await until(lambda: is_at(life, rotation.operation, Step.OVERLAPPING))
            after = await insisted(life.app.way_in)
            assert await opens(before)
            assert await opens(after)
            await steady.change()
            await insisted(lambda: end_overlap(life))
            await life.done(rotation.operation)
        assert_died_everywhere(place.kills, OperationKind.ROTATE)
        assert not await opens(before)
        assert await opens(after)
        await steady.ask()
    await life.end()


async def is_at(life: Life, operation: pb2.Operation, step: Step) -> bool:
    return (await life.operation(operation.operation_id)).step == step


async def end_overlap(life: Life) -> None:
    await life.app.rewrite(
        "UPDATE operations SET next_try_at = now(),"
        " parameters = parameters || jsonb_build_object('overlap_end', now())"
        " WHERE deployment_id = $1 AND kind = 'rotate'"
    )


async def opens(way_in: pb2.GetDatabaseConnectionResponse) -> bool:
    """Whether the password opens the database; the listener dies with the provisioner."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                connection = await asyncpg.connect(way_in.uri, timeout=PATIENCE_SECONDS)
            except asyncpg.InvalidPasswordError:
                return False
            except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.05)
            else:
                await connection.close()
                return True


@dataclass
class Steady:
    """Asks the database by itself, and through the door, again and again."""

    life: Life
    direct: pb2.GetDatabaseConnectionResponse
    agent: mcp.Client
    asked: int = 0

    async def ask(self) -> None:
        # A connection of its own each time, as a program without a pool has.
        connection = await asyncpg.connect(self.direct.uri, timeout=PATIENCE_SECONDS)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        answer = await self.agent.call_tool("query", {"sql": "SELECT word FROM kept"})
        assert not answer.is_error, answer.structured_content
        self.asked += 1

    async def ask_on(self) -> None:
        while True:
            await self.ask()

    async def change(self) -> None:
        """Takes the passwords of now."""
        self.direct = await own_address(self.life)


async def own_address(life: Life) -> pb2.GetDatabaseConnectionResponse:
    """Returns where the server itself listens, as the front door is told."""
    stub = life.place.mesh.stub(ProvisionerServiceStub, "provisioner", "app_proxy")
    request = pb2.GetDatabaseConnectionRequest(
        deployment_id=life.app.deployment_id, role=pb2.DATABASE_ROLE_WRITER
    )
    return await insisted(lambda: stub.GetDatabaseConnection(request, metadata=life.metadata))


@asynccontextmanager
async def asking(life: Life) -> AsyncIterator[Steady]:
    """Yields while every question is answered; fails if one was not."""
    key = await life.place.mesh.key(life.customer, life.app.deployment_id)
    async with an_agent(life, key.key) as agent:
        steady = Steady(life, await own_address(life), agent)
        await steady.ask()
        running = asyncio.create_task(steady.ask_on())
        try:
            yield steady
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        assert steady.asked > 2


@asynccontextmanager
async def an_agent(life: Life, key: str) -> AsyncIterator[mcp.Client]:
    context = ssl.create_default_context(cafile=str(life.place.mesh.pki["edge"].authority))
    context.check_hostname = False
    files = life.place.mesh.pki["edge"]
    context.load_cert_chain(files.certificate, files.key)
    base: Any = f"https://127.0.0.1:{life.place.port}"
    headers = {"host": life.app.host, "authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(base_url=base, verify=context, headers=headers, timeout=30) as client,
        mcp.Client(streamable_http_client(f"{base}/mcp", http_client=client)) as agent,
    ):
        yield agent


async def test_a_deletion_killed_everywhere_ends_certified(place: Place) -> None:
    life = await a_life(place, everything=True)
    with place.kills.armed(OperationKind.DELETE):
        request = pb2.DeleteDeploymentRequest(deployment_id=life.app.deployment_id)
        deleted = await insisted(
            lambda: place.stub.DeleteDeployment(request, metadata=life.metadata)
        )
        await life.done(deleted.operation)
    assert_died_everywhere(place.kills, OperationKind.DELETE)
    document = await verified(place.stub, await certificate(place, deleted.certificate_token))
    kinds = {one["kind"] for one in document["resources"]}
    assert kinds >= {"keys", "route", "loans", "counters", "database", "bucket", "secrets"}
    assert await asyncio.to_thread(processes_left, [life.app.deployment_id]) == []
    life.others.append(pb2.Deployment(deployment_id=life.app.deployment_id, host=life.app.host))
    await life.end()


async def test_a_tenants_deletion_killed_everywhere_ends_certified_and_harms_nobody_else(
    place: Place,
) -> None:
    life, other = await a_life(place, everything=True), await a_life(place)
    names = await life.names()
    token = secrets.token_hex(32)
    with place.kills.armed(OperationKind.DELETE_TENANT):
        await life.delete_tenant(token)
        await certificate(place, token)
    await insisted(lambda: published_keys(place.stub))
    assert_died_everywhere(place.kills, OperationKind.DELETE_TENANT)
    await life.certified(token, names)
    assert await other.words(other.app.deployment_id) == [other.word]
    await other.end()
