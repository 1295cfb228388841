"""The client commands as a script sees them: stdout, stderr, exit code.

The API behind them is scripted: what is tested is what the commands make of its answers. The same
commands against the real services are in tests/e2e.
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.common.v1 import access_pb2
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit_pb
from google.protobuf.message import Message

from deploy.local.ports import free_ports
from services.shared.errors import (
    BulkheadError,
    FailedPreconditionError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from tests.scripted_api import CREATED, KEY, ScriptedApi, bulkhead, time

# What the whole command line imports before it knows which command was asked for.
BUILT = "import sys; from cli.__main__ import build; build(); print(*sys.modules)"


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


TENANT = auth_pb.CreateTenantResponse(
    tenant_id="ten_1", name="Acme", plan=auth_pb.PLAN_PRO, key_id="key_1", key="smcp_1t_new"
)


async def test_tenant_create_sends_what_was_said_and_prints_the_key_once(api: ScriptedApi) -> None:
    api.answers["CreateTenant"] = TENANT
    outcome = await bulkhead(api.port, "tenant", "create", "Acme", "--plan", "pro")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("smcp_1t_new") == 1
    assert "not shown again" in outcome.err
    (request,) = api.requests("CreateTenant")
    assert (request.name, request.plan) == ("Acme", auth_pb.PLAN_PRO)
    assert len(request.request_id) == 36


async def test_every_call_carries_the_key_and_a_deadline(api: ScriptedApi) -> None:
    api.answers["CreateTenant"] = TENANT
    await bulkhead(api.port, "tenant", "create", "Acme", "--timeout", "3")
    ((_, _, metadata, remaining),) = api.asked
    assert metadata["authorization"] == f"Bearer {KEY}"
    assert 0 < remaining <= 3


async def test_json_has_the_field_names_of_the_contract_at_the_top(api: ScriptedApi) -> None:
    api.answers["CreateTenant"] = TENANT
    outcome = await bulkhead(api.port, "tenant", "create", "Acme", "--json", "--request-id", "r1")
    assert outcome.json == {
        "tenant_id": "ten_1",
        "name": "Acme",
        "plan": "PLAN_PRO",
        "key_id": "key_1",
        "key": "smcp_1t_new",
    }
    assert api.requests("CreateTenant")[0].request_id == "r1"


async def test_the_key_is_read_from_a_file_before_the_environment(
    api: ScriptedApi, tmp_path: Path
) -> None:
    file = tmp_path / "acme.key"
    file.write_text("smcp_1t_of_the_file\n")
    api.answers["GetTenant"] = auth_pb.GetTenantResponse(
        tenant=auth_pb.Tenant(tenant_id="ten_1", name="Acme", create_time=time())
    )
    address = f"http://localhost:{api.port}/"
    outcome = await bulkhead(
        api.port, "tenant", "get", "--json", "--key-file", str(file), "--api", address
    )
    assert outcome.json["tenant_id"] == "ten_1"
    assert outcome.json["create_time"] == "2026-11-22T12:00:00Z"
    assert api.asked[0][2]["authorization"] == "Bearer smcp_1t_of_the_file"


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
        "… registering",
        "… database",
        "… database (try 2: port taken)",
        "… publishing",
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


async def test_key_issue_passes_deployment_scopes_and_name(api: ScriptedApi) -> None:
    api.answers["IssueKey"] = auth_pb.IssueKeyResponse(
        key_id="key_2",
        key="smcp_1d_new",
        kind=access_pb2.KEY_KIND_DEPLOYMENT,
        deployment_id="dep_1",
        scopes=["db:read", "usage:read"],
    )
    scopes = ("--scope", "db:read", "--scope", "usage:read")
    outcome = await bulkhead(
        api.port, "key", "issue", "--deployment", "dep_1", *scopes, "--name", "agent", "--json"
    )
    assert (outcome.json["key_id"], outcome.json["key"]) == ("key_2", "smcp_1d_new")
    (request,) = api.requests("IssueKey")
    assert (request.deployment_id, request.name) == ("dep_1", "agent")
    assert list(request.scopes) == ["db:read", "usage:read"]


async def test_key_list_and_revoke(api: ScriptedApi) -> None:
    revoked = CREATED + timedelta(hours=1)
    api.answers["ListKeys"] = auth_pb.ListKeysResponse(
        keys=[auth_pb.Key(key_id="key_1", create_time=time(), revoke_time=time(revoked))]
    )
    api.answers["RevokeKey"] = auth_pb.RevokeKeyResponse(key_id="key_1", revoke_time=time(revoked))
    keys = (await bulkhead(api.port, "key", "list", "--json")).json["keys"]
    assert keys[0]["revoke_time"] == "2026-11-22T13:00:00Z"
    assert "2026-11-22 13:00:00Z" in (await bulkhead(api.port, "key", "list")).out
    outcome = await bulkhead(api.port, "key", "revoke", "key_1")
    assert outcome.out == "key_1 is revoked since 2026-11-22 13:00:00Z\n"


async def test_usage_prints_numbers_as_numbers(api: ScriptedApi) -> None:
    api.answers["GetUsage"] = ratelimit_pb.GetUsageResponse(
        deployment_id="dep_1",
        month="2026-11",
        used=12,
        limit=1_000,
        remaining=988,
        reset_time=time(datetime(2026, 12, 1, tzinfo=UTC)),
        rate_per_second=10,
        burst=20,
    )
    shown = (await bulkhead(api.port, "usage", "--deployment", "dep_1", "--json")).json
    assert (shown["used"], shown["limit"], shown["remaining"]) == (12, 1_000, 988)
    text = (await bulkhead(api.port, "usage", "--deployment", "dep_1")).out
    assert "12 of 1,000" in text


async def test_usage_without_a_monthly_limit_says_so(api: ScriptedApi) -> None:
    api.answers["GetUsage"] = ratelimit_pb.GetUsageResponse(
        deployment_id="dep_1", month="2026-11", reset_time=time(), rate_per_second=1, burst=2
    )
    assert "no monthly limit" in (await bulkhead(api.port, "usage")).out
    shown = (await bulkhead(api.port, "usage", "--json")).json
    assert shown["used"] == 0
    assert "limit" not in shown


async def test_audit_list_shows_what_each_call_was_about(api: ScriptedApi) -> None:
    api.answers["ListAuditEvents"] = auth_pb.ListAuditEventsResponse(
        events=[
            auth_pb.AuditEvent(
                event_id="aud_1",
                time=time(),
                key_id="key_1",
                peer="edge",
                method="bulkhead.auth.v1.AuthService/RevokeKey",
                resources={"key": "key_9"},
            )
        ]
    )
    (event,) = (await bulkhead(api.port, "audit", "list", "--json")).json["events"]
    assert event["resources"] == {"key": "key_9"}
    assert "auth.v1.AuthService/RevokeKey" in (await bulkhead(api.port, "audit", "list")).out


@pytest.mark.parametrize(
    ("error", "line", "more"),
    [
        (
            NotFoundError("deployment"),
            "refused: NOT_FOUND RESOURCE_NOT_FOUND: no such deployment",
            {"metadata": {"kind": "deployment"}},
        ),
        (
            InvalidFieldError("name", "must not be empty"),
            "refused: INVALID_ARGUMENT FIELD_INVALID: name: must not be empty",
            {"field": "name"},
        ),
        (
            LimitExceededError(
                "slow down", Reason.BURST_EXCEEDED, "burst", timedelta(milliseconds=1_500)
            ),
            "refused: RESOURCE_EXHAUSTED BURST_EXCEEDED: slow down; try again in 1.5 s",
            {"retry_after_seconds": 1.5},
        ),
        (
            FailedPreconditionError("it has no database", Reason.RESOURCE_NOT_DECLARED),
            "refused: FAILED_PRECONDITION RESOURCE_NOT_DECLARED: it has no database",
            {},
        ),
    ],
)
async def test_a_refusal_is_one_clear_line_one_document_and_exit_code_1(
    api: ScriptedApi, error: BulkheadError, line: str, more: dict[str, Any]
) -> None:
    api.answers["GetDeployment"] = error
    outcome = await bulkhead(api.port, "deployment", "get", "dep_9", "--json")
    assert outcome.code == 1
    assert outcome.err == f"{line}\n"
    shown = outcome.json["error"]
    assert shown["reason"] == error.reason
    assert more.items() <= shown.items()


async def test_without_json_a_refusal_leaves_stdout_empty(api: ScriptedApi) -> None:
    api.answers["GetDeployment"] = NotFoundError("deployment")
    outcome = await bulkhead(api.port, "deployment", "get", "dep_9")
    assert (outcome.code, outcome.out) == (1, "")


async def test_nobody_at_the_address_says_what_to_do() -> None:
    (port,) = free_ports(1)
    outcome = await bulkhead(port, "tenant", "get", "--json")
    assert outcome.code == 1
    assert "try: bulkhead up" in outcome.err
    assert outcome.json["error"]["reason"] == "UNREACHABLE"
    assert "Traceback" not in outcome.err


async def test_a_short_unavailability_is_waited_out(api: ScriptedApi) -> None:
    answers = iter([UnavailableError("away"), TENANT])
    api.answers["CreateTenant"] = lambda _: next(answers)
    outcome = await bulkhead(api.port, "tenant", "create", "Acme")
    assert outcome.code == 0, outcome.err
    first, second = api.requests("CreateTenant")
    assert first.request_id == second.request_id


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        (("tenant", "get"), {"BULKHEAD_KEY": ""}, "BULKHEAD_KEY"),
        (("tenant", "get"), {"BULKHEAD_API": ""}, "BULKHEAD_API"),
        (("tenant", "get"), {"BULKHEAD_KEY": "two words"}, "not a key"),
        (("tenant", "get", "--key-file", "/nowhere/at.all"), {}, "cannot read the key file"),
        (("tenant", "create", "Acme", "--plan", "gold"), {}, "gold"),
        (("tenant", "create"), {}, "Missing argument"),
        (("deployment", "list", "--limit", "0"), {}, "--limit"),
        (("deployment", "connection", "dep_1", "--role", "owner"), {}, "owner"),
        (("deployment", "get", "--colour"), {}, "--colour"),
        (("deployment", "undo"), {}, "undo"),
        (("tenant", "get", "--timeout", "0"), {}, "--timeout"),
    ],
)
async def test_wrong_use_is_exit_code_2_and_reaches_nobody(
    api: ScriptedApi, arguments: tuple[str, ...], environment: dict[str, str], said: str
) -> None:
    outcome = await bulkhead(api.port, *arguments, **environment)
    assert outcome.code == 2
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert api.asked == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("tenant", "create"),
        ("tenant", "get"),
        ("deployment", "create"),
        ("deployment", "list"),
        ("deployment", "get"),
        ("deployment", "connection"),
        ("deployment", "delete"),
        ("key", "issue"),
        ("key", "list"),
        ("key", "revoke"),
        ("key", "rotate"),
        ("usage",),
        ("audit", "list"),
        ("audit", "export"),
        ("audit", "verify"),
        ("support-key", "issue"),
        ("plan", "change"),
    ],
)
async def test_every_command_teaches_by_example(arguments: tuple[str, ...]) -> None:
    outcome = await bulkhead(0, *arguments, "--help")
    assert outcome.code == 0
    assert f"bulkhead {' '.join(arguments)}" in outcome.out


async def test_a_client_command_does_not_wait_for_what_the_embedded_stack_needs() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", BUILT),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    imported = set(output.decode().split())
    assert "grpc" in imported
    assert imported.isdisjoint({"deploy", "services", "asyncpg", "psutil", "cryptography"})
