"""The client commands as a script sees them: stdout, stderr, exit code.

The API behind them is scripted: what is tested is what the commands make of its answers. The same
commands against the real services are in tests/e2e.
"""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit_pb

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
from tests.contracts import ROOT
from tests.scripted_api import KEY, ScriptedApi, bulkhead, time

# What the whole command line imports before it knows which command was asked for.
BUILT = "import sys; from cli.program import build; build(); print(*sys.modules)"


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


async def test_the_version_is_that_of_the_package() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli", "--version"),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
    )
    output, _ = await process.communicate()
    assert output.decode() == f"bulkhead {version('bulkhead')}\n"
