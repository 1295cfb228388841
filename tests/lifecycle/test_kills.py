"""The provisioner dies at every boundary of every step: all ends as it was wanted (P-39).

In each test one operation goes on although whoever works on it is killed at every boundary that the
plan has, one after another; every replica that takes over does so with what the last one left.
Then the tenant is deleted, and nothing is left.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration

from deploy.local.postgres import MeshPostgres
from deploy.local.valkey import ValkeyServer
from services.provisioner.domain import OperationKind, Step
from tests.conftest import StartMesh
from tests.lives import Life, Place, a_life, begin, died_everywhere, running_place
from tests.mesh import fresh_id
from tests.provisioner_kills import (
    insisted,
    steps_of,
    until,
)
from tests.s3 import Storage
from tests.scan_machine import processes_left
from tests.steady_clients import asking, opens

pytestmark = pytest.mark.promise("P-39")
LONG = Duration(seconds=3_600)


@pytest.fixture(scope="module")
async def place(
    start_mesh: StartMesh, s3: Storage, postgres: MeshPostgres, valkey: ValkeyServer
) -> AsyncIterator[Place]:
    async with running_place(start_mesh, s3, postgres, valkey) as running:
        yield running


def test_every_step_there_is_belongs_to_a_plan() -> None:
    assert {step for kind in OperationKind for step in steps_of(kind)} == set(Step)


async def test_a_create_killed_everywhere_ends_ready_to_be_used(place: Place) -> None:
    with place.kills.armed(OperationKind.CREATE):
        life, operation = await begin(place, everything=True)
        await life.done(operation)
        await died_everywhere(place.kills, OperationKind.CREATE)
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
        await died_everywhere(place.kills, OperationKind.CREATE)
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
        await died_everywhere(place.kills, OperationKind.BACK_UP)
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
        await died_everywhere(place.kills, OperationKind.SUSPEND)
    state, resources = await life.state()
    assert (state, resources["DATABASE"]) == ("SUSPENDED", "SUSPENDED")
    assert await life.app.at_the_door() == 402
    assert await asyncio.to_thread(processes_left, [life.app.deployment_id]) == []
    with place.kills.armed(OperationKind.RESUME):
        await life.done(await insisted(life.app.resume))
        await died_everywhere(place.kills, OperationKind.RESUME)
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
            await died_everywhere(place.kills, OperationKind.ROTATE)
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
