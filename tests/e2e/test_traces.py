"""One request is one trace through everything, and the metrics of every service can be scraped."""

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import httpx2
import pytest

from deploy.local.ports import LOOPBACK
from deploy.local.traces import Span
from deploy.local.waiting import until
from tests.e2e.outside import Deployment, Stack
from tests.e2e.witness import Exports

PATIENCE_SECONDS = 30.0
PARENT = "00f067aa0ba902b7"
OPERATIONS = Path(__file__).parent.parent.parent / "docs" / "operations.md"
CHECK = "envoy.service.auth.v3.Authorization/Check"
RESOLVE = "bulkhead.auth.v1.AuthService/ResolveKeys"
ACQUIRE = "bulkhead.ratelimit.v1.RatelimitService/Acquire"
Wanted = set[tuple[str, str]]
# Of a request whose key and route are remembered: service, and name or store.
REMEMBERED: Wanted = {
    ("edge", "deployment"),
    ("app_proxy", CHECK),
    ("app_proxy", "redis"),
    ("app_proxy", ACQUIRE),
    ("ratelimit", ACQUIRE),
    ("ratelimit", "redis"),
    ("app_proxy", "GET /llms.txt"),
}
# Of the first with a key, further.
NEW: Wanted = {("app_proxy", RESOLVE), ("auth", RESOLVE), ("auth", "postgresql")}
# Not of ours, but of every process.
OF_PROCESSES = ("process_", "python_", "target_info", "otel_")


def named(span: Span) -> tuple[str, str]:
    """Returns what is looked for in a span: its service, and its store or else its name."""
    return span.service, span.attributes.get("db.system.name") or span.name


def failure(span: Span) -> str:
    """Returns why a span failed; empty when it did not."""
    return span.attributes.get("error.type", "unknown") if span.failed else ""


def whole(wanted: Wanted) -> Callable[[Sequence[Span]], bool]:
    """Returns what says whether spans are all that is wanted, each below another of them."""

    def complete(spans: Sequence[Span]) -> bool:
        known = {PARENT, *(span.span_id for span in spans)}
        return wanted <= set(map(named, spans)) and all(each.parent_id in known for each in spans)

    return complete


async def asked(
    deployment: Deployment, exported: Exports, wanted: Wanted, status: int = 200, key: str = ""
) -> list[Span]:
    """Returns the spans of one request, once they are all there."""
    trace_id = secrets.token_hex(16)
    sent = {"traceparent": f"00-{trace_id}-{PARENT}-01"}
    answer = await deployment.get("/llms.txt?code=planted", key or deployment.key, **sent)
    assert answer.status_code == status
    return await exported.traces.wait_for(trace_id, whole(wanted), PATIENCE_SECONDS)


@pytest.fixture(scope="module")
async def deployment(stack: Stack) -> Deployment:
    return await (await stack.tenant()).deployment("traced")


async def test_a_request_is_one_trace_from_the_door_to_each_store(
    deployment: Deployment, exported: Exports
) -> None:
    spans = await asked(deployment, exported, REMEMBERED | NEW)
    # A script that Valkey does not know yet is sent to it.
    assert {failure(span) for span in spans} <= {"", "NoScriptError"}
    for text in (deployment.key, "planted"):
        assert text not in str(spans)


async def test_a_request_whose_key_is_remembered_leaves_auth_alone(
    deployment: Deployment, exported: Exports
) -> None:
    async def remembered() -> bool:
        # A machine that is busy may fail to renew the lease under which keys are remembered.
        spans = await asked(deployment, exported, REMEMBERED)
        return "auth" not in {span.service for span in spans} and not any(map(failure, spans))

    await until(remembered, PATIENCE_SECONDS)


async def test_a_refusal_is_no_failure_of_whoever_refuses(
    deployment: Deployment, exported: Exports
) -> None:
    other = await (await deployment.tenant.stack.tenant()).deployment("foreign", ())
    wanted = {("edge", "deployment"), ("app_proxy", CHECK)}
    spans = await asked(deployment, exported, wanted, status=401, key=other.key)
    assert not any(span.failed for span in spans)
    edge = next(span for span in spans if named(span) == ("edge", "deployment"))
    assert edge.attributes["http.status_code"] == "401"


async def test_every_service_shows_its_metrics_and_no_ids(
    deployment: Deployment, metrics_ports: Mapping[str, int]
) -> None:
    assert (await deployment.get("/llms.txt")).status_code == 200
    tenant_id = (await deployment.tenant.run("tenant", "get", "--json")).json["tenant_id"]
    texts = {name: await scraped(port) for name, port in metrics_ports.items()}
    for service, text in texts.items():
        assert f'service_name="{service}"' in text
        for figure in ("bulkhead_rpc_server_active_calls", "db_client_connection_count"):
            assert figure in text, service
        for hidden in (tenant_id, deployment.deployment_id, deployment.key_id, deployment.key):
            assert hidden not in text, service
    assert "rpc_server_call_duration_seconds_count" in texts["auth"]
    assert f'rpc_method="{RESOLVE}"' in texts["auth"]
    assert 'bulkhead_key_cache_lookups_total{result="hit"}' in texts["app_proxy"]
    assert 'bulkhead_door_verdicts_total{reason="OK"}' in texts["app_proxy"]
    assert 'bulkhead_ratelimit_decisions_total{decision="allowed"}' in texts["ratelimit"]
    assert (
        'db_client_operation_duration_seconds_count{db_operation_name="EVALSHA"'
        in (texts["ratelimit"])
    )
    assert 'bulkhead_provisioner_databases{state="ready"}' in texts["provisioner"]
    assert 'outcome="succeeded"' in texts["provisioner"]
    assert undocumented("".join(texts.values())) == []


async def scraped(port: int) -> str:
    async with httpx2.AsyncClient(base_url=f"http://{LOOPBACK}:{port}") as client:
        return (await client.get("/metrics")).text


def undocumented(text: str) -> list[str]:
    """Returns our own families of metrics, in Prometheus' text, that operations do not know."""
    rows = re.findall(r"^\| `([a-z_.]+)`", OPERATIONS.read_text(), re.MULTILINE)
    known = {row.replace(".", "_") for row in rows}
    families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    return [
        family
        for family in sorted(families)
        if not family.startswith(OF_PROCESSES)
        # A unit comes after the name, and `_total`.
        and not any(f"{family}_".startswith(f"{name}_") for name in known)
    ]
