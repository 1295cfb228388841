"""Deployments on the command line: made, waited for, listed, deleted."""

from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb
from google.protobuf.message import Message

from services.shared.errors import (
    BulkheadError,
    UnavailableError,
)
from tests.scripted_api import ScriptedApi, bulkhead, time


def deployment(state: str = "READY", number: int = 1) -> provisioner_pb.Deployment:
    return provisioner_pb.Deployment(
        deployment_id=f"dep_{number}",
        name="notes",
        host=f"notes-{number}.localhost",
        state=provisioner_pb.DeploymentState.Value(f"DEPLOYMENT_STATE_{state}"),
        mcp=True,
        database=True,
        create_time=time(),
    )


def operation(state: str, step: str = "", **more: Any) -> provisioner_pb.Operation:
    return provisioner_pb.Operation(
        operation_id="op_1",
        deployment_id="dep_1",
        kind=provisioner_pb.OPERATION_KIND_CREATE,
        state=provisioner_pb.OperationState.Value(f"OPERATION_STATE_{state}"),
        step=step,
        **more,
    )


def waited(*operations: provisioner_pb.Operation | BulkheadError) -> list[Any]:
    return [
        one
        if isinstance(one, BulkheadError)
        else provisioner_pb.WaitOperationResponse(operation=one)
        for one in operations
    ]


def created(state: str = "CREATING") -> provisioner_pb.CreateDeploymentResponse:
    return provisioner_pb.CreateDeploymentResponse(
        deployment=deployment(state), operation=operation("RUNNING", "registering")
    )


async def test_deployment_create_waits_tells_each_step_and_flattens(api: ScriptedApi) -> None:
    api.answers["CreateDeployment"] = created()
    api.answers["WaitOperation"] = waited(
        operation("RUNNING", "registering"),
        operation("RUNNING", "database"),
        operation("RUNNING", "database", retries=1, message="port taken"),
        operation("SUCCEEDED", "publishing", end_time=time()),
    )
    api.answers["GetDeployment"] = provisioner_pb.GetDeploymentResponse(deployment=deployment())
    outcome = await bulkhead(
        api.port, "deployment", "create", "notes", "--mcp", "--database", "--json"
    )
    assert outcome.code == 0, outcome.err
    shown = outcome.json
    assert (shown["deployment_id"], shown["host"]) == ("dep_1", "notes-1.localhost")
    assert shown["state"] == "DEPLOYMENT_STATE_READY"
    assert shown["operation_id"] == "op_1"
    assert shown["operation"]["state"] == "OPERATION_STATE_SUCCEEDED"
    steps = [line for line in outcome.err.splitlines() if line.startswith("…")]
    assert steps == [
        "… preparing its keys",
        "… making its database",
        "… making its database (try 2: port taken)",
        "… opening its host",
    ]


async def test_no_wait_returns_what_is_being_made(api: ScriptedApi) -> None:
    api.answers["CreateDeployment"] = created()
    outcome = await bulkhead(api.port, "deployment", "create", "notes", "--no-wait", "--json")
    assert outcome.json["state"] == "DEPLOYMENT_STATE_CREATING"
    assert [name for name, *_ in api.asked] == ["CreateDeployment"]


async def test_waiting_outlives_a_server_that_stops(api: ScriptedApi) -> None:
    streams = iter(
        [
            waited(operation("RUNNING", "database"), UnavailableError("stopping")),
            waited(operation("SUCCEEDED", "publishing")),
        ]
    )
    api.answers["CreateDeployment"] = created()
    api.answers["WaitOperation"] = lambda _: next(streams)
    api.answers["GetDeployment"] = provisioner_pb.GetDeploymentResponse(deployment=deployment())
    outcome = await bulkhead(api.port, "deployment", "create", "notes", "--json")
    assert outcome.code == 0, outcome.err
    assert len(api.requests("WaitOperation")) == 2


async def test_an_operation_that_failed_is_a_refusal_with_its_message(api: ScriptedApi) -> None:
    api.answers["CreateDeployment"] = created()
    api.answers["WaitOperation"] = waited(operation("FAILED", "database", message="disk full"))
    outcome = await bulkhead(api.port, "deployment", "create", "notes", "--json")
    assert outcome.code == 1
    error = outcome.json["error"]
    assert (error["reason"], error["message"]) == ("OPERATION_FAILED", "disk full")
    assert error["metadata"] == {"operation_id": "op_1", "deployment_id": "dep_1"}


async def test_waiting_ends_when_the_patience_does(api: ScriptedApi) -> None:
    api.answers["CreateDeployment"] = created()
    api.answers["WaitOperation"] = waited(operation("RUNNING", "database"))
    outcome = await bulkhead(api.port, "deployment", "create", "notes", "--wait-seconds", "0.5")
    assert outcome.code == 1
    assert "bulkhead deployment get dep_1" in outcome.err


async def test_deployment_delete_waits_until_nothing_is_left(api: ScriptedApi) -> None:
    api.answers["DeleteDeployment"] = provisioner_pb.DeleteDeploymentResponse(
        operation=operation("RUNNING")
    )
    api.answers["WaitOperation"] = waited(operation("SUCCEEDED"))
    outcome = await bulkhead(api.port, "deployment", "delete", "dep_1", "--json")
    assert outcome.code == 0
    assert outcome.json["deployment_id"] == "dep_1"
    assert outcome.json["operation"]["state"] == "OPERATION_STATE_SUCCEEDED"


def paged(request: provisioner_pb.ListDeploymentsRequest) -> Message:
    first = int(request.page_token or 1)
    size = min(request.page_size, 2)
    return provisioner_pb.ListDeploymentsResponse(
        deployments=[deployment(number=number) for number in range(first, first + size)],
        next_page_token=str(first + size) if first + size < 6 else "",
    )


async def test_lists_are_followed_to_the_last_page(api: ScriptedApi) -> None:
    api.answers["ListDeployments"] = paged
    outcome = await bulkhead(api.port, "deployment", "list", "--json")
    assert [one["deployment_id"] for one in outcome.json["deployments"]] == [
        f"dep_{number}" for number in range(1, 7)
    ]


async def test_a_limited_list_stops_there(api: ScriptedApi) -> None:
    api.answers["ListDeployments"] = paged
    outcome = await bulkhead(api.port, "deployment", "list", "--json", "--limit", "3")
    assert len(outcome.json["deployments"]) == 3
    assert [request.page_size for request in api.requests("ListDeployments")] == [3, 1]


async def test_a_table_is_aligned_and_never_cut(api: ScriptedApi) -> None:
    long = deployment()
    long.name = "名" * 60
    long.host = "h" * 80 + ".localhost"
    api.answers["ListDeployments"] = provisioner_pb.ListDeploymentsResponse(
        deployments=[long, deployment(number=2)]
    )
    outcome = await bulkhead(api.port, "deployment", "list")
    head, first, second = outcome.out.splitlines()
    assert head.startswith("DEPLOYMENT  NAME")
    assert first.endswith(long.host)
    assert long.name in first
    # Wide characters take two columns each.
    assert head.index("STATE") == first.index("ready") + 60 == second.index("ready")


async def test_connection_prints_the_uri_and_nothing_else(api: ScriptedApi) -> None:
    uri = "postgresql://writer:secret@127.0.0.1:5433/main"
    api.answers["GetDatabaseConnection"] = provisioner_pb.GetDatabaseConnectionResponse(
        host="127.0.0.1", port=5433, uri=uri
    )
    outcome = await bulkhead(api.port, "deployment", "connection", "dep_1", "--role", "writer")
    assert (outcome.out, outcome.err) == (f"{uri}\n", "")
    (request,) = api.requests("GetDatabaseConnection")
    assert request.role == provisioner_pb.DATABASE_ROLE_WRITER
