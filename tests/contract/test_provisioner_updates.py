"""What deployments are made of, and changing it, over the wire."""

from typing import Any

import asyncpg
import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration

from services.provisioner.domain import USUAL_IDLE_TIMEOUT, USUAL_STORAGE_BYTES
from tests.apps import App, an_app
from tests.mesh import Mesh, bearer, fresh_id
from tests.refusals import expect_refused

ALWAYS, TOO_SHORT, TOO_LONG = Duration(), Duration(nanos=1_000), Duration(seconds=604_801)
WHOLE = {"KEYS", "ROUTE", "LOANS", "COUNTERS", "DATABASE", "BACKUPS"}


@pytest.fixture(scope="module")
async def app(mesh: Mesh) -> App:
    return await an_app(mesh)


async def update(app: App, **fields: Any) -> pb2.Deployment:
    answer = await app.provisioner.UpdateDeployment(
        pb2.UpdateDeploymentRequest(deployment_id=app.deployment_id, **fields),
        metadata=app.metadata,
        timeout=30,
    )
    return answer.deployment


async def test_a_deployment_says_what_it_is_made_of_and_what_was_done_last(app: App) -> None:
    got = await app.get()
    assert await app.resources() == dict.fromkeys(WHOLE, "READY")
    assert [each.kind for each in got.resources] == sorted(each.kind for each in got.resources)
    assert all(each.reason == "" and each.HasField("since_time") for each in got.resources)
    assert got.last_operation.kind == pb2.OPERATION_KIND_CREATE
    assert got.last_operation.state == pb2.OPERATION_STATE_SUCCEEDED
    assert got.storage_bytes == USUAL_STORAGE_BYTES
    assert got.idle_timeout.ToTimedelta() == USUAL_IDLE_TIMEOUT
    listed = await app.provisioner.ListDeployments(
        pb2.ListDeploymentsRequest(), metadata=app.metadata
    )
    (only,) = listed.deployments
    assert {each.kind for each in only.resources} == {each.kind for each in got.resources}
    assert only.last_operation == got.last_operation


async def test_a_create_says_what_it_makes(mesh: Mesh) -> None:
    customer = await mesh.customer()
    app = await an_app(mesh, database=False)
    assert set(await app.resources()) == WHOLE - {"DATABASE", "BACKUPS"}
    answer = await app.provisioner.CreateDeployment(
        pb2.CreateDeploymentRequest(
            request_id=fresh_id(),
            name="own",
            database=True,
            storage_bytes=50_000_000,
            idle_timeout=ALWAYS,
        ),
        metadata=bearer(customer.key),
    )
    made = answer.deployment
    assert (made.storage_bytes, made.idle_timeout) == (50_000_000, ALWAYS)
    assert {each.state for each in made.resources} <= {
        pb2.RESOURCE_STATE_PENDING,
        pb2.RESOURCE_STATE_READY,
    }
    assert made.last_operation.operation_id == answer.operation.operation_id


async def test_what_is_unset_stays_as_it_is(app: App) -> None:
    before = await app.get()
    assert (await update(app)).storage_bytes == before.storage_bytes
    changed = await update(app, idle_timeout=Duration(seconds=90))
    assert changed.idle_timeout == Duration(seconds=90)
    assert changed.storage_bytes == before.storage_bytes
    assert (await update(app, idle_timeout=ALWAYS)).idle_timeout == ALWAYS
    assert (await app.get()).idle_timeout == ALWAYS


@pytest.mark.promise("P-03")
async def test_a_quota_holds_when_the_call_returns(mesh: Mesh) -> None:
    app = await an_app(mesh)
    async with app.writer() as writer:
        await writer.execute("CREATE TABLE note (words text)")
        for _ in range(2):
            full = await update(app, storage_bytes=1)
            assert full.storage_bytes == 1
            assert any(each.over_quota for each in full.resources)
            with pytest.raises(asyncpg.DiskFullError):
                await writer.execute("INSERT INTO note VALUES ('more')")
            raised = await update(app, storage_bytes=USUAL_STORAGE_BYTES)
            assert not any(each.over_quota for each in raised.resources)
            await writer.execute("INSERT INTO note VALUES ('more')")


@pytest.mark.promise("P-03")
async def test_a_quota_that_is_set_while_the_database_sleeps_holds_when_it_wakes(
    mesh: Mesh,
) -> None:
    app = await an_app(mesh)
    async with app.writer() as writer:
        await writer.execute("CREATE TABLE note (words text)")
    await app.done(await app.suspend())
    assert (await update(app, storage_bytes=1)).storage_bytes == 1
    await app.done(await app.resume())
    async with app.writer() as writer:
        with pytest.raises(asyncpg.DiskFullError):
            await writer.execute("INSERT INTO note VALUES ('more')")


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("storage_bytes", {"storage_bytes": -1}),
        ("storage_bytes", {"storage_bytes": 1 << 60}),
        ("idle_timeout", {"idle_timeout": TOO_SHORT}),
        ("idle_timeout", {"idle_timeout": TOO_LONG}),
        ("idle_timeout", {"idle_timeout": Duration(seconds=-5)}),
    ],
)
async def test_a_bad_field_is_refused_by_name(app: App, field: str, fields: dict[str, Any]) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await update(app, **fields)
    request = pb2.CreateDeploymentRequest(request_id="r", name="a", database=True, **fields)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await app.provisioner.CreateDeployment(request, metadata=app.metadata)


async def test_no_bytes_are_no_quota_to_change_to(app: App) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="storage_bytes"):
        await update(app, storage_bytes=0)


@pytest.mark.parametrize(
    ("field", "fields"),
    [("storage_bytes", {"storage_bytes": 1}), ("idle_timeout", {"idle_timeout": ALWAYS})],
)
async def test_only_a_database_has_a_quota_and_an_idle_time(
    app: App, field: str, fields: dict[str, Any]
) -> None:
    request = pb2.CreateDeploymentRequest(request_id="r", name="a", **fields)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await app.provisioner.CreateDeployment(request, metadata=app.metadata)
    bare = await an_app(app.mesh, database=False)
    with expect_refused("FAILED_PRECONDITION", "RESOURCE_NOT_DECLARED"):
        await update(bare, **fields)


async def test_a_deployment_that_is_deleted_is_not_changed(mesh: Mesh) -> None:
    app = await an_app(mesh)
    await app.done(await app.delete())
    for fields in ({"storage_bytes": 1}, {"idle_timeout": ALWAYS}):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await update(app, **fields)
