"""New passwords for a deployment's database, over the wire."""

import asyncio

import asyncpg
import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration

from tests.apps import App, an_app
from tests.mesh import PATIENCE_SECONDS, Mesh, fresh_id
from tests.refusals import details, expect_refused

LONG, NONE = Duration(seconds=3_600), Duration()


async def rotate(app: App, overlap: Duration, request_id: str = "") -> pb2.Operation:
    answer = await app.provisioner.RotateDatabaseCredentials(
        pb2.RotateDatabaseCredentialsRequest(
            request_id=request_id or fresh_id(), deployment_id=app.deployment_id, overlap=overlap
        ),
        metadata=app.metadata,
        timeout=PATIENCE_SECONDS,
    )
    return answer.operation


async def overlapping(app: App, operation: pb2.Operation) -> None:
    """Returns when both passwords open the database."""
    changes = app.provisioner.WaitOperation(
        pb2.WaitOperationRequest(operation_id=operation.operation_id),
        metadata=app.metadata,
        timeout=PATIENCE_SECONDS,
    )
    async for change in changes:
        assert change.operation.state == pb2.OPERATION_STATE_RUNNING, change
        if change.operation.step == "overlapping":
            changes.cancel()
            return


async def end_overlap(app: App) -> None:
    await app.rewrite(
        "UPDATE operations SET next_try_at = now(),"
        " parameters = parameters || jsonb_build_object('overlap_end', now())"
        " WHERE deployment_id = $1 AND kind = 'rotate'"
    )


async def opens(uri: str) -> bool:
    try:
        connection = await asyncpg.connect(uri, timeout=PATIENCE_SECONDS)
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError):
        return False
    await connection.close()
    return True


async def ask_until(app: App, stop: asyncio.Event) -> int:
    """Asks the database by whatever way in is told, again and again; returns how often."""
    asked = 0
    while not stop.is_set():
        async with app.writer() as writer:
            assert await writer.fetchval("SELECT 1") == 1
        asked += 1
    return asked


@pytest.mark.promise("P-02")
async def test_passwords_are_replaced_without_a_failed_query_and_the_ones_before_end(
    mesh: Mesh,
) -> None:
    app = await an_app(mesh)
    before = await app.way_in()
    stop = asyncio.Event()
    asking = asyncio.ensure_future(ask_until(app, stop))
    session = await asyncpg.connect(before.uri, timeout=PATIENCE_SECONDS)
    operation = await rotate(app, LONG)
    await overlapping(app, operation)
    after = await app.way_in()
    assert (after.port, after.database) == (before.port, before.database)
    assert after.password != before.password
    # Both open it, and who was in stays in.
    assert await opens(before.uri)
    assert await opens(after.uri)
    assert await session.fetchval("SELECT 1") == 1
    await end_overlap(app)
    await app.done(operation)
    stop.set()
    assert await asking > 0
    assert not await opens(before.uri)
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await session.fetchval("SELECT 1")
    session.terminate()
    # What the writer of before made is the writer's of now.
    async with app.writer() as writer:
        assert await writer.fetchval("SELECT 1") == 1


@pytest.mark.promise("P-02")
async def test_what_one_writer_made_the_next_one_owns_and_a_second_rotation_ends_the_first_ones(
    mesh: Mesh,
) -> None:
    app = await an_app(mesh)
    seen = []
    for number in range(3):
        way_in = await app.way_in()
        seen.append(way_in.uri)
        async with app.writer() as writer:
            await writer.execute(f"CREATE TABLE made_{number} ()")
            for earlier in range(number):
                await writer.execute(f"ALTER TABLE made_{earlier} ADD COLUMN by_{number} int")
        await app.done(await rotate(app, NONE))
    assert len(set(seen)) == len(seen)
    assert not any([await opens(uri) for uri in seen])
    assert await opens((await app.way_in()).uri)


@pytest.mark.promise("P-02")
async def test_a_database_that_sleeps_wakes_with_the_new_passwords_alone(mesh: Mesh) -> None:
    app = await an_app(mesh)
    before = await app.way_in()
    await app.done(await app.suspend())
    with expect_refused("FAILED_PRECONDITION", "DEPLOYMENT_SUSPENDED"):
        await rotate(app, NONE)
    # It sleeps when it is resumed, until it is used.
    await app.done(await app.resume())
    await app.done(await rotate(app, NONE))
    assert (await app.resources())["DATABASE"] == "SLEEPING"
    assert await opens((await app.way_in()).uri)
    assert not await opens(before.uri)


async def test_what_is_to_be_done_does_not_wait_for_an_overlap_to_end(mesh: Mesh) -> None:
    app = await an_app(mesh)
    before = await app.way_in()
    rotation = await rotate(app, LONG)
    await overlapping(app, rotation)
    with expect_refused("FAILED_PRECONDITION", "OPERATION_RUNNING") as refused:
        await rotate(app, LONG)
    told, _ = details(refused.value)
    assert told.metadata["operation_id"] == rotation.operation_id
    await app.done(await app.suspend())
    await app.done(await app.resume())
    # It lasts as long as was asked for, through a sleep too.
    assert await opens(before.uri)
    await end_overlap(app)
    await app.done(rotation)
    assert not await opens(before.uri)
    second = await rotate(app, LONG)
    await overlapping(app, second)
    await app.done(await app.delete())
    assert (await app.mesh.finished(app.customer, second.operation_id)).message == (
        "the deployment was deleted before it was done"
    )


async def test_one_request_is_one_rotation(mesh: Mesh) -> None:
    app = await an_app(mesh)
    request_id = fresh_id()
    answers = await asyncio.gather(*(rotate(app, NONE, request_id) for _ in range(4)))
    assert len({operation.operation_id for operation in answers}) == 1
    await app.done(answers[0])
    assert (await rotate(app, NONE, request_id)).operation_id == answers[0].operation_id
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await rotate(app, LONG, request_id)


async def test_a_rotation_with_a_bad_field_is_refused_by_name(mesh: Mesh) -> None:
    bare = await an_app(mesh, database=False)
    with expect_refused("FAILED_PRECONDITION", "RESOURCE_NOT_DECLARED"):
        await rotate(bare, NONE)
    for wrong in (Duration(seconds=-1), Duration(seconds=86_401), Duration(seconds=1, nanos=-1)):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="overlap"):
            await rotate(bare, wrong)
    for field, request in (
        ("request_id", pb2.RotateDatabaseCredentialsRequest(deployment_id=bare.deployment_id)),
        ("deployment_id", pb2.RotateDatabaseCredentialsRequest(request_id="r")),
    ):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
            await bare.provisioner.RotateDatabaseCredentials(request, metadata=bare.metadata)
