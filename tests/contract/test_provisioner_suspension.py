"""Suspending deployments and ending that, over the wire."""

import asyncpg
import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from tests.apps import App, an_app
from tests.lending import Lender
from tests.mesh import Mesh, bearer, fresh_id
from tests.refusals import details, expect_refused

PAYMENT_REQUIRED, UNAUTHORIZED = 402, 401


async def vended(app: App) -> str:
    """Returns why the deployment is refused what is lent to it; empty: it is not."""
    key = await app.mesh.key(app.customer, app.deployment_id)
    answer = await app.mesh.stub(CredentialsServiceStub, "credentials").Vend(
        credentials_pb2.VendRequest(items=[credentials_pb2.VendItem(alias="mine")]),
        metadata=bearer(key.key),
    )
    reason = answer.results[0].refusal.reason
    return str(reason) if answer.results[0].HasField("refusal") else ""


async def test_a_suspended_deployment_is_shut_when_the_call_returns_and_loses_nothing(
    mesh: Mesh,
) -> None:
    app = await an_app(mesh)
    lender = Lender(mesh, app.customer)
    await lender.bind(app.deployment_id, await lender.connection(), alias="mine")
    async with app.writer() as writer:
        await writer.execute("CREATE TABLE kept AS SELECT 1 AS number")
        operation = await app.suspend()
        assert operation.kind == pb2.OPERATION_KIND_SUSPEND
        assert (await app.get()).state == pb2.DEPLOYMENT_STATE_SUSPENDED
        assert await app.at_the_door() == PAYMENT_REQUIRED
        assert await vended(app)
        with expect_refused("FAILED_PRECONDITION", "DEPLOYMENT_SUSPENDED"):
            await app.way_in()
        await app.done(operation)
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            await writer.fetchval("SELECT 1")
    shut = {"ROUTE", "LOANS", "DATABASE"}
    states = await app.resources()
    assert {kind for kind, state in states.items() if state == "SUSPENDED"} == shut
    assert {state for kind, state in states.items() if kind not in shut} == {"READY"}

    await app.done(await app.resume())
    assert (await app.get()).state == pb2.DEPLOYMENT_STATE_READY
    assert await app.at_the_door() == UNAUTHORIZED
    assert await vended(app) == ""
    async with app.writer() as writer:
        assert await writer.fetchval("SELECT number FROM kept") == 1
    assert set((await app.resources()).values()) == {"READY"}


async def test_suspending_and_resuming_twice_are_one_each_until_it_is_done_anew(
    mesh: Mesh,
) -> None:
    app = await an_app(mesh, database=False)
    first = await app.suspend()
    assert (await app.suspend()).operation_id == first.operation_id
    await app.done(first)
    assert (await app.suspend()).operation_id == first.operation_id
    resumed = await app.resume()
    assert resumed.kind == pb2.OPERATION_KIND_RESUME
    assert (await app.resume()).operation_id == resumed.operation_id
    await app.done(resumed)
    assert (await app.resume()).operation_id == resumed.operation_id
    again = await app.suspend()
    assert again.operation_id != first.operation_id
    await app.done(again)


async def test_whoever_asks_last_has_the_last_word(mesh: Mesh) -> None:
    app = await an_app(mesh)
    for _ in range(3):
        suspended, resumed = await app.suspend(), await app.resume()
        for operation in (suspended, resumed):
            await app.mesh.finished(app.customer, operation.operation_id)
        assert (await app.get()).state == pb2.DEPLOYMENT_STATE_READY
        assert await app.at_the_door() == UNAUTHORIZED
    # As if it were being resumed still.
    await app.rewrite(
        "WITH last AS (UPDATE operations SET state = 'running', ended_at = NULL, sealed_key = 'x',"
        " next_try_at = 'infinity' WHERE operation_id = (SELECT operation_id FROM operations"
        "  WHERE deployment_id = $1 AND kind = 'resume' ORDER BY created_at DESC LIMIT 1))"
        " UPDATE deployments SET state = 'suspended', suspended_at = now()"
        " WHERE deployment_id = $1"
    )
    await app.done(await app.suspend())
    assert (await app.get()).state == pb2.DEPLOYMENT_STATE_SUSPENDED
    assert await app.at_the_door() == PAYMENT_REQUIRED


async def test_what_was_never_suspended_is_not_resumed(mesh: Mesh) -> None:
    app = await an_app(mesh, database=False)
    with expect_refused("FAILED_PRECONDITION", "NOT_SUSPENDED"):
        await app.resume()


async def test_a_deployment_that_is_worked_on_is_not_suspended_and_the_refusal_says_by_what(
    mesh: Mesh,
) -> None:
    app = await an_app(mesh, database=False)
    await app.rewrite(
        "UPDATE operations SET state = 'running', ended_at = NULL, sealed_key = 'x',"
        " next_try_at = 'infinity' WHERE deployment_id = $1"
    )
    create = (await app.get()).last_operation
    for calling in (app.suspend, app.resume):
        code = "OPERATION_RUNNING" if calling == app.suspend else "NOT_SUSPENDED"
        with expect_refused("FAILED_PRECONDITION", code) as refused:
            await calling()
        if code == "OPERATION_RUNNING":
            told, _ = details(refused.value)
            assert told.metadata["operation_id"] == create.operation_id
    rotate = pb2.RotateDatabaseCredentialsRequest(
        request_id=fresh_id(), deployment_id=app.deployment_id
    )
    with expect_refused("FAILED_PRECONDITION", "OPERATION_RUNNING"):
        await app.provisioner.RotateDatabaseCredentials(rotate, metadata=app.metadata)


async def test_a_suspended_deployment_is_deleted_like_any_other(mesh: Mesh) -> None:
    app = await an_app(mesh)
    await app.suspend()
    await app.done(await app.delete())
    assert (await app.get()).state == pb2.DEPLOYMENT_STATE_DELETED
    for calling in (app.suspend, app.resume):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await calling()
