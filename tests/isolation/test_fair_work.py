"""One tenant asks for much at once: what others ask for is done meanwhile (P-38)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.provisioner.domain import OperationKind, Step
from services.provisioner.locks import DeploymentLocks
from services.provisioner.server import compose
from services.provisioner.settings import Settings
from services.provisioner.work import Moment
from services.shared.ids import TenantId, new_deployment_id, new_tenant_id
from services.shared.postgres import Database, open_database
from services.shared.server import serving
from tests.conftest import StartMesh
from tests.databases import SERVICES, Databases
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id

pytestmark = pytest.mark.promise("P-38")

SUCCEEDED = pb2.OPERATION_STATE_SUCCEEDED


class Held:
    """A boundary at which creates stay while they are held, after all that their calls do."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.there = 0
        self._changed = asyncio.Condition()

    async def reached(self, kind: OperationKind, step: Step, moment: Moment) -> None:
        if (kind, step, moment) != (OperationKind.CREATE, Step.PUBLISHING, Moment.BEFORE):
            return
        if not self.go_on.is_set():
            async with self._changed:
                self.there += 1
                self._changed.notify_all()
            await self.go_on.wait()

    async def until(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS), self._changed:
            await self._changed.wait_for(lambda: self.there >= number)


Fair: TypeAlias = tuple[Mesh, Held]


@pytest.fixture
async def fair(start_mesh: StartMesh) -> AsyncIterator[Fair]:
    """A mesh whose provisioner works on four operations at once, and on creates when it is let."""
    overrides = {"provisioner": {"lock_pool_size": 12, "sweep_seconds": 0.3}}
    async with start_mesh(overrides) as mesh:
        await mesh.stop("provisioner")
        settings, held, own = mesh.settings["provisioner"], Held(), AsyncExitStack()
        assert isinstance(settings, Settings)
        service = await own.enter_async_context(compose(settings, held))
        await own.enter_async_context(serving(service, settings))
        mesh.running["provisioner"] = own
        try:
            yield mesh, held
        finally:
            held.go_on.set()


async def begin_creates(mesh: Mesh, customer: Customer, number: int) -> list[str]:
    """Returns the operations of so many creates, all asked for at once."""
    stub = mesh.stub(ProvisionerServiceStub, "provisioner")
    answers = await asyncio.gather(
        *(
            stub.CreateDeployment(
                pb2.CreateDeploymentRequest(request_id=fresh_id(), name=f"one-of-many-{number}"),
                metadata=bearer(customer.key),
                timeout=PATIENCE_SECONDS,
            )
            for number in range(number)
        )
    )
    return [answer.operation.operation_id for answer in answers]


async def test_work_of_one_tenant_leaves_turns_to_others(fair: Fair) -> None:
    mesh, held = fair
    noisy, quiet = await mesh.customer(), await mesh.customer()
    stub = mesh.stub(ProvisionerServiceStub, "provisioner")
    held.go_on.set()
    own = await mesh.deployment(quiet, database=False, mcp=False)
    held.go_on.clear()

    begun = await begin_creates(mesh, noisy, 8)
    await held.until(2)
    wanted = pb2.SuspendDeploymentRequest(deployment_id=own.deployment_id)
    suspended = await stub.SuspendDeployment(
        wanted, metadata=bearer(quiet.key), timeout=PATIENCE_SECONDS
    )
    done = await mesh.finished(quiet, suspended.operation.operation_id)
    assert done.state == SUCCEEDED
    asked = pb2.GetDeploymentRequest(deployment_id=own.deployment_id)
    found = await stub.GetDeployment(asked, metadata=bearer(quiet.key), timeout=PATIENCE_SECONDS)
    assert found.deployment.state == pb2.DEPLOYMENT_STATE_SUSPENDED
    assert held.there == 2

    held.go_on.set()
    ends = await asyncio.gather(*(mesh.finished(noisy, one) for one in begun))
    assert [end.state for end in ends] == [SUCCEEDED] * len(begun)


@pytest.fixture
async def database(databases: Databases) -> AsyncIterator[Database]:
    """One with two connections."""
    settings = await databases.fresh("provisioner")
    small = settings.model_copy(update={"postgres_pool_size": 2})
    migrations: Path = SERVICES / "provisioner/migrations"
    async with open_database(small, "provisioner", migrations) as opened:
        yield opened


async def stay(database: Database, tenant: TenantId, leave: asyncio.Event) -> None:
    async with database.tenant(tenant):
        await leave.wait()


async def test_transactions_of_one_tenant_leave_connections_to_others(database: Database) -> None:
    noisy, leave = new_tenant_id(), asyncio.Event()
    staying = [asyncio.ensure_future(stay(database, noisy, leave)) for _ in range(5)]
    # None of them leaves before this is done; only the first of these may come before them.
    try:
        for _ in range(3):
            async with database.tenant(new_tenant_id()) as connection:
                assert await connection.fetchval("SELECT 1") == 1
    finally:
        leave.set()
        await asyncio.gather(*staying, return_exceptions=True)


async def hold(locks: DeploymentLocks, caller: TenantId, leave: asyncio.Event) -> None:
    patience = timedelta(seconds=PATIENCE_SECONDS)
    async with locks.hold(new_deployment_id(), patience, caller=caller):
        await leave.wait()


async def test_calls_of_one_tenant_leave_locks_to_others(database: Database) -> None:
    locks, noisy, leave, done = (
        DeploymentLocks(database, 2),
        new_tenant_id(),
        asyncio.Event(),
        asyncio.Event(),
    )
    done.set()
    holding = [asyncio.ensure_future(hold(locks, noisy, leave)) for _ in range(5)]
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            # The first may come before the others.
            for _ in range(3):
                await hold(locks, new_tenant_id(), done)
        assert not any(one.done() for one in holding)
    finally:
        leave.set()
        await asyncio.gather(*holding)
