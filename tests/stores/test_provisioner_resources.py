"""What deployments are made of, as it is kept."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from services.provisioner import operation_store, resource_store, store
from services.provisioner.domain import (
    Deployment,
    DeploymentState,
    OperationKind,
    OperationState,
    Resource,
    ResourceKind,
    ResourceState,
    Step,
    Wanted,
)
from services.provisioner.operation_store import SealedKey
from services.provisioner.work import is_limited, must_end_well
from services.shared.ids import TenantId, new_deployment_id, new_operation_id, new_tenant_id
from services.shared.postgres import Connection, Database, open_database
from tests.databases import SERVICES, Databases

DATABASE, BUCKET = ResourceKind.DATABASE, ResourceKind.BUCKET


@pytest.fixture(scope="module")
async def database(databases: Databases) -> AsyncIterator[Database]:
    settings = await databases.fresh("provisioner")
    async with open_database(
        settings, "provisioner", SERVICES / "provisioner" / "migrations"
    ) as opened:
        yield opened


async def made(connection: Connection, tenant: TenantId | None = None) -> Deployment:
    """Returns a deployment with its resources written down."""
    own, wanted = new_deployment_id(), Wanted(new_operation_id(), "n", mcp=False, database=True)
    deployment = await store.insert_deployment(
        connection, tenant or new_tenant_id(), own, f"{own}.localhost", wanted
    )
    await resource_store.insert(connection, deployment, deployment.declared)
    return deployment


async def one(connection: Connection, deployment: Deployment, kind: ResourceKind) -> Resource:
    here = deployment.deployment_id
    found = (await resource_store.list_of(connection, [here]))[here]
    return next(resource for resource in found if resource.kind is kind)


async def put(
    connection: Connection, deployment: Deployment, state: ResourceState, reason: str = ""
) -> Resource:
    await resource_store.set_state(connection, deployment.deployment_id, DATABASE, state, reason)
    return await one(connection, deployment, DATABASE)


async def test_since_when_moves_with_the_state_and_not_with_the_reason(database: Database) -> None:
    async with database.service() as connection:
        deployment = await made(connection)
        pending = await one(connection, deployment, DATABASE)
    async with database.service() as connection:
        degraded = await put(connection, deployment, ResourceState.DEGRADED, "no port is free")
    async with database.service() as connection:
        still = await put(connection, deployment, ResourceState.DEGRADED, "it does not start")
        ready = await put(connection, deployment, ResourceState.READY)
    assert pending.since < degraded.since == still.since < ready.since
    assert (degraded.reason, still.reason, ready.reason) == (
        "no port is free",
        "it does not start",
        "",
    )


async def test_what_is_going_comes_back_to_nothing_and_what_is_gone_stays_so(
    database: Database,
) -> None:
    async with database.service() as connection:
        deployment = await made(connection)
        here = deployment.deployment_id
        await resource_store.mark_access_revoked(connection, here, [DATABASE])
        for state in set(ResourceState) - {ResourceState.GOING, ResourceState.GONE}:
            assert (await put(connection, deployment, state)).state is ResourceState.GOING
        left = await put(connection, deployment, ResourceState.GOING, "a process is left")
        assert left.reason == "a process is left"
        await resource_store.mark_destroyed(connection, here, DATABASE, {"files": 3})
        await resource_store.mark_verified(connection, here, DATABASE)
        for state in ResourceState:
            assert (await put(connection, deployment, state)).state is ResourceState.GONE


async def test_an_end_is_told_as_it_came_the_first_time(database: Database) -> None:
    async with database.service() as connection:
        deployment = await made(connection)
    here, seen = deployment.deployment_id, []
    for files in (3, 0):
        async with database.service() as connection:
            await resource_store.mark_access_revoked(connection, here, [DATABASE])
            await resource_store.mark_destroyed(connection, here, DATABASE, {"files": files})
            await resource_store.mark_verified(connection, here, DATABASE)
            seen.append(await one(connection, deployment, DATABASE))
    first, second = seen
    assert first == second
    assert first.details == {"files": 3}
    assert None not in (first.access_revoked_time, first.destroyed_time, first.verified_gone_time)


async def test_what_is_lost_does_not_sleep(database: Database) -> None:
    async with database.service() as connection:
        deployment = await made(connection)
        lost = await put(connection, deployment, ResourceState.LOST, "its files are gone")
        for state in (ResourceState.SLEEPING, ResourceState.SUSPENDED, ResourceState.PENDING):
            assert await put(connection, deployment, state) == lost


@pytest.mark.promise("P-36")
async def test_a_tenants_transaction_sees_and_changes_no_resource_of_another(
    database: Database,
) -> None:
    async with database.service() as connection:
        deployment = await made(connection)
    here = deployment.deployment_id
    async with database.tenant(new_tenant_id()) as connection:
        assert await resource_store.list_of(connection, [here]) == {here: []}
        await resource_store.set_state(connection, here, DATABASE, ResourceState.LOST)
        await resource_store.set_measured(connection, here, 1, over_quota=True)
        await resource_store.mark_access_revoked(connection, here, ResourceKind)
    async with database.service() as connection:
        assert (await one(connection, deployment, DATABASE)).state is ResourceState.PENDING
        assert (await one(connection, deployment, DATABASE)).used_bytes is None


async def test_only_what_is_ready_and_awake_has_to_run(database: Database) -> None:
    async with database.service() as connection:
        deployment = await made(connection)
        here = deployment.deployment_id
        await store.set_state(connection, here, DeploymentState.READY)
        awake = {ResourceState.READY, ResourceState.DEGRADED}
        for state in set(ResourceState) - {ResourceState.GOING, ResourceState.GONE}:
            # Straight, for not every state follows on every other.
            await connection.execute(
                "UPDATE resources SET state = $2 WHERE deployment_id = $1 AND kind = 'database'",
                here,
                state,
            )
            found = await resource_store.awake_databases(connection, here)
            assert bool(found) == (state in awake), state
        await put(connection, deployment, ResourceState.READY)
        await store.set_state(connection, here, DeploymentState.SUSPENDED)
        assert await resource_store.awake_databases(connection, here) == []


async def begin(
    connection: Connection, deployment: Deployment, kind: OperationKind, step: Step
) -> None:
    await operation_store.insert(
        connection, deployment, new_operation_id(), kind, step, SealedKey(b"sealed")
    )


async def test_an_overlap_goes_on_beside_one_other_operation_and_what_is_due_first_comes_first(
    database: Database,
) -> None:
    async with database.service() as connection:
        deployment = await made(connection)
        here = deployment.deployment_id
        await begin(connection, deployment, OperationKind.ROTATE, Step.OVERLAPPING)
        rotation = await operation_store.running(connection, here, waiting=True)
        assert rotation is not None
        assert await operation_store.running(connection, here) is None
        left = await operation_store.begin_overlap(
            connection, rotation.operation_id, timedelta(hours=1)
        )
        again = await operation_store.begin_overlap(
            connection, rotation.operation_id, timedelta(hours=9)
        )
        assert again <= left <= timedelta(hours=1)
        await operation_store.set_next_try(connection, rotation.operation_id, left)
        await begin(connection, deployment, OperationKind.SUSPEND, Step.CLOSING)
        due = await operation_store.due(connection, here)
        assert due is not None
        assert (due.operation.kind, due.wait) == (OperationKind.SUSPEND, timedelta(0))
        await operation_store.end(
            connection, due.operation.operation_id, OperationState.SUCCEEDED, ""
        )
        due = await operation_store.due(connection, here)
        assert due is not None
        assert due.operation.operation_id == rotation.operation_id
        await operation_store.supersede(connection, here, OperationKind, "deleted")
        assert await operation_store.due(connection, here) is None


async def test_an_operation_ends_once(database: Database) -> None:
    async with database.service() as connection:
        deployment = await made(connection)
        await begin(connection, deployment, OperationKind.RESUME, Step.OPENING)
        running = await operation_store.running(connection, deployment.deployment_id)
        assert running is not None
        ending = running.operation_id, OperationState.SUCCEEDED, ""
        assert await operation_store.end(connection, *ending) is True
        assert await operation_store.end(connection, *ending) is False


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (OperationKind.DELETE, Step.VERIFYING),
        (OperationKind.SUSPEND, Step.CLOSING),
        (OperationKind.ROTATE, Step.TELLING),
        (OperationKind.ROTATE, Step.ENDING),
    ],
)
def test_what_would_leave_a_door_open_is_never_given_up(kind: OperationKind, step: Step) -> None:
    assert must_end_well(kind, step)
    assert not is_limited(kind, step)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (OperationKind.CREATE, Step.DATABASE),
        (OperationKind.BACK_UP, Step.COPYING),
        (OperationKind.ROTATE, Step.ISSUING),
        (OperationKind.ROTATE, Step.SWITCHING),
    ],
)
def test_what_has_changed_nothing_yet_does_not_keep_others_away_for_ever(
    kind: OperationKind, step: Step
) -> None:
    assert is_limited(kind, step)
    assert not must_end_well(kind, step)
