"""The front door by itself: a real Envoy before small real servers with the mesh's certificates."""

import asyncio
import contextlib
import json
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import pytest
from bulkhead.common.v1 import access_pb2

from deploy.envoy import config
from deploy.envoy.contracts import contracts, open_methods
from deploy.envoy.settings import Address
from deploy.local.envoy import envoy_binary, front_door
from deploy.local.pki import Paths, certificates
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.traces import otlp_receiver
from tests.lifecycle.envoy_doubles import (
    SERVICES,
    Door,
    DoorKeeper,
    Recorded,
    RecordingService,
    door_of,
    grpc_server,
    http_server,
    settings_of,
)

HOST = "shop.localhost"
GOOD = {"authorization": "Bearer good", "host": HOST}


@pytest.fixture(scope="module")
def mesh_pki(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Paths]:
    return certificates(tmp_path_factory.mktemp("pki"), (*SERVICES, "edge"))


@pytest.fixture(scope="module")
async def door(
    mesh_pki: Mapping[str, Paths], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    home = tmp_path_factory.mktemp("door")
    settings = settings_of(mesh_pki, home)
    recorded = Recorded()
    async with contextlib.AsyncExitStack() as stack:
        for service, address in settings.services.items():
            keeper = DoorKeeper(recorded) if service == "app_proxy" else None
            handler = RecordingService(service, recorded)
            await stack.enter_async_context(
                grpc_server(mesh_pki[service], address.port, handler, keeper)
            )
        http_port = settings.app_proxy_http.port
        await stack.enter_async_context(http_server(mesh_pki["app_proxy"], http_port, recorded))
        await stack.enter_async_context(front_door(home, settings))
        yield door_of(settings, recorded)


@pytest.fixture
async def lonely_door(mesh_pki: Mapping[str, Paths], tmp_path: Path) -> AsyncIterator[Door]:
    """A front door with nothing behind it."""
    settings = settings_of(mesh_pki, tmp_path)
    async with front_door(tmp_path, settings):
        yield door_of(settings, Recorded())


@pytest.fixture(autouse=True)
def _forget(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "door" in request.fixturenames:
        door = request.getfixturevalue("door")
        for each in (door.recorded.calls, door.recorded.checks, door.recorded.requests):
            each.clear()


def assert_problem(response: httpx.Response, status: int, reason: str) -> None:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["type"] == f"urn:bulkhead:error:{reason}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["reason"] == reason


async def call(target: str, path: str, **metadata: str) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(target) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        try:
            await method(b"", timeout=10, metadata=tuple(metadata.items()))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


def test_envoy_accepts_the_configuration_with_all_that_it_can_hold(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    extra = free_ports(2)
    settings = replace(
        settings_of(mesh_pki, tmp_path),
        otlp=Address("otlp.example", extra[0]),
        unchecked=Address(LOOPBACK, extra[1]),
    )
    file = config.write(settings, tmp_path / "envoy.json")
    command = [str(envoy_binary()), "--mode", "validate", "--disable-hot-restart", "-c", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr.lower()


def test_there_is_no_door_without_checks_unless_one_is_asked_for(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    listeners = config.bootstrap(settings_of(mesh_pki, tmp_path))["static_resources"]["listeners"]
    assert [each["name"] for each in listeners] == ["edge"]


async def test_a_request_with_the_right_key_goes_through(door: Door) -> None:
    async with door.client() as client:
        response = await client.post("/mcp?a=b", headers=GOOD, content=b"{}")
    assert response.status_code == 200
    assert response.text == "saw /mcp?a=b"
    assert response.headers["server"] == "bulkhead"


async def test_a_refusal_passes_as_app_proxy_worded_it(door: Door) -> None:
    async with door.client() as client:
        response = await client.get("/mcp", headers={"host": HOST})
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.text == "as app_proxy worded it"
    assert not door.recorded.requests


async def test_a_stranger_cannot_speak_as_the_mesh(door: Door) -> None:
    forged = {
        "x-bulkhead-deployment": "dep_forged",
        "X-Bulkhead-Tenant": "ten_forged",
        "x-envoy-retry-on": "5xx",
        "x-envoy-internal": "true",
        "x-envoy-external-address": "192.0.2.7",
        "x-forwarded-host": "other.localhost",
        "forwarded": "host=other.localhost",
    }
    async with door.client() as client:
        response = await client.get("/mcp", headers=GOOD | forged)
    assert response.status_code == 200
    (checked,), (served,) = door.recorded.checks, door.recorded.requests
    assert not [name for name in checked if name.startswith(("x-bulkhead", "x-envoy"))]
    assert served["x-bulkhead-deployment"] == "dep_true"
    assert not {"x-bulkhead-tenant", "x-forwarded-host", "forwarded"} & served.keys()
    added = {name: value for name, value in served.items() if name.startswith("x-envoy")}
    assert added == {"x-envoy-external-address": LOOPBACK}


async def test_a_stranger_cannot_speak_as_the_mesh_to_the_api_either(door: Door) -> None:
    path = "/bulkhead.auth.v1.AuthService/GetTenant"
    code = await call(door.target, path, **{"x-bulkhead-peer": "provisioner"})
    assert code is grpc.StatusCode.OK
    assert "x-bulkhead-peer" not in door.recorded.metadata[-1]


@pytest.mark.parametrize("host", ["example.com", "localhost.example.com", "shop.localhost.evil"])
async def test_an_unknown_host_is_told_so(door: Door, host: str) -> None:
    async with door.client() as client:
        response = await client.get("/mcp", headers=GOOD | {"host": host})
    assert_problem(response, 404, "RESOURCE_NOT_FOUND")
    assert not door.recorded.checks


@pytest.mark.parametrize("host", [f"{HOST}:9999", HOST.upper()])
async def test_a_host_is_known_with_any_port_and_in_any_case(door: Door, host: str) -> None:
    async with door.client() as client:
        response = await client.get("/mcp", headers=GOOD | {"host": host})
    assert response.status_code == 200


async def test_a_plain_request_at_the_api_is_answered_with_a_problem(door: Door) -> None:
    async with door.client() as client:
        response = await client.get("/bulkhead.auth.v1.AuthService/GetTenant")
    assert_problem(response, 404, "RESOURCE_NOT_FOUND")
    assert not door.recorded.calls


OPEN = {method.path: method.service for method in open_methods(contracts())}
ALL = [
    f"/{contract.full_name}/{method.name}"
    for file in contracts().values()
    for contract in file.services_by_name.values()
    for method in contract.methods
]


@pytest.mark.parametrize("path", sorted(OPEN))
async def test_an_open_method_reaches_its_service(door: Door, path: str) -> None:
    assert await call(door.target, path) is grpc.StatusCode.OK
    assert door.recorded.calls == [f"{OPEN[path]}{path}"]
    assert not door.recorded.checks


@pytest.mark.parametrize(
    "path",
    [
        *sorted(set(ALL) - set(OPEN)),
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/envoy.service.auth.v3.Authorization/Check",
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        "/bulkhead.auth.v1.AuthService/ResolveKeys/",
        "/bulkhead.auth.v1.AuthService/GetTenant/../ResolveKeys",
        "//bulkhead.auth.v1.AuthService/ResolveKeys",
    ],
)
async def test_a_method_meant_for_peers_is_not_there(door: Door, path: str) -> None:
    assert await call(door.target, path) is grpc.StatusCode.UNIMPLEMENTED
    assert not door.recorded.calls


def test_what_is_open_is_what_the_contracts_say() -> None:
    assert "/bulkhead.auth.v1.AuthService/CreateTenant" in OPEN
    assert "/bulkhead.provisioner.v1.ProvisionerService/WaitOperation" in OPEN
    assert "/bulkhead.provisioner.v1.ProvisionerService/GetDeletionCertificate" in OPEN
    assert "/bulkhead.auth.v1.AuthService/ResolveKeys" not in OPEN
    for file in contracts().values():
        for contract in file.services_by_name.values():
            for method in contract.methods:
                access = method.GetOptions().Extensions[access_pb2.access]
                path = f"/{contract.full_name}/{method.name}"
                keyless = access.keyless and "edge" in access.peers
                assert (path in OPEN) == (keyless or not (access.peers or access.keyless))


async def test_when_the_check_cannot_be_asked_nobody_passes(lonely_door: Door) -> None:
    async with lonely_door.client() as client:
        response = await client.get("/mcp", headers=GOOD)
    assert_problem(response, 503, "DEPENDENCY_UNAVAILABLE")
    assert int(response.headers["retry-after"]) >= 1


async def test_a_check_that_hangs_is_a_closed_door(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    settings = settings_of(mesh_pki, tmp_path)
    silent = await asyncio.start_server(
        lambda _reader, _writer: None, LOOPBACK, settings.services["app_proxy"].port
    )
    door = door_of(settings, Recorded())
    async with silent, front_door(tmp_path, settings), door.client() as client:
        response = await client.get("/mcp", headers=GOOD)
    assert_problem(response, 503, "DEPENDENCY_UNAVAILABLE")
    assert "retry-after" in response.headers


async def test_a_service_that_is_away_is_unavailable_not_wrong(lonely_door: Door) -> None:
    code = await call(lonely_door.target, "/bulkhead.auth.v1.AuthService/GetTenant")
    assert code is grpc.StatusCode.UNAVAILABLE


async def test_a_deployment_that_is_away_is_a_problem_with_retry_after(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    settings, recorded = settings_of(mesh_pki, tmp_path), Recorded()
    port = settings.services["app_proxy"].port
    handler = RecordingService("app_proxy", recorded)
    async with (
        grpc_server(mesh_pki["app_proxy"], port, handler, DoorKeeper(recorded)),
        front_door(tmp_path, settings),
        door_of(settings, recorded).client() as client,
    ):
        response = await client.get("/mcp", headers=GOOD)
    assert_problem(response, 503, "DEPENDENCY_UNAVAILABLE")
    assert "retry-after" in response.headers


async def test_another_services_certificate_is_not_believed(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    settings, recorded = settings_of(mesh_pki, tmp_path), Recorded()
    port = settings.services["app_proxy"].port
    handler = RecordingService("app_proxy", recorded)
    async with (
        grpc_server(mesh_pki["ratelimit"], port, handler, DoorKeeper(recorded)),
        front_door(tmp_path, settings),
        door_of(settings, recorded).client() as client,
    ):
        response = await client.get("/mcp", headers=GOOD)
    assert response.status_code == 503
    assert not recorded.checks


async def test_a_killed_service_is_reached_again_when_it_is_back(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    settings, recorded = settings_of(mesh_pki, tmp_path), Recorded()
    path = "/bulkhead.auth.v1.AuthService/GetTenant"
    handler = RecordingService("auth", recorded)
    target = door_of(settings, recorded).target
    async with front_door(tmp_path, settings):
        for _ in range(8):
            assert await call(target, path) is grpc.StatusCode.UNAVAILABLE
        async with grpc_server(mesh_pki["auth"], settings.services["auth"].port, handler):
            assert await call(target, path) is grpc.StatusCode.OK


async def test_a_stream_of_events_arrives_as_it_is_sent(door: Door) -> None:
    door.recorded.next_event.clear()
    async with door.client() as client, client.stream("GET", "/events", headers=GOOD) as response:
        chunks = response.aiter_text()
        assert await anext(chunks) == "data: one\n\n"
        door.recorded.next_event.set()
        assert await anext(chunks) == "data: two\n\n"


async def test_a_body_over_the_limit_is_refused(door: Door) -> None:
    body = b"x" * (door.settings.max_request_bytes + 1)
    async with door.client() as client:
        response = await client.post("/mcp", headers=GOOD, content=body)
        assert_problem(response, 413, "FIELD_INVALID")
        small = await client.post("/mcp", headers=GOOD, content=b"x" * 100_000)
    assert small.status_code == 200


async def test_headers_over_the_limit_are_refused(door: Door) -> None:
    async with door.client() as client:
        response = await client.get("/mcp", headers=GOOD | {"x-long": "x" * 40_000})
    assert_problem(response, 431, "FIELD_INVALID")


async def test_an_escaped_slash_is_refused(door: Door) -> None:
    async with door.client() as client:
        response = await client.get("/llms.txt/..%2Fmcp", headers=GOOD)
    assert_problem(response, 400, "FIELD_INVALID")


async def test_the_access_log_holds_neither_keys_nor_queries(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    settings = settings_of(mesh_pki, tmp_path)
    async with front_door(tmp_path, settings), door_of(settings, Recorded()).client() as client:
        await client.get("/mcp?secret=hidden", headers=GOOD)
    text = settings.access_log.read_text()
    (line,) = [json.loads(each) for each in text.splitlines()]
    assert line["path"] == "/mcp"
    assert line["host"] == HOST
    assert line["status"] == 503
    assert "good" not in text
    assert "hidden" not in text
    assert settings.access_log.stat().st_mode & 0o777 == 0o600


async def test_the_administration_is_read_only(lonely_door: Door) -> None:
    async with httpx.AsyncClient(base_url=f"http://{lonely_door.settings.admin}") as client:
        assert (await client.get("/ready")).status_code == 200
        assert (await client.post("/quitquitquit")).status_code == 403
        assert (await client.get("/config_dump")).status_code == 403


async def test_a_trace_is_carried_through_the_door(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    recorded = Recorded()
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    async with contextlib.AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(otlp_receiver())
        host, _, port = receiver.endpoint.rpartition(":")
        settings = replace(
            settings_of(mesh_pki, tmp_path), otlp=Address(host, int(port)), trusts_traces=True
        )
        paths = mesh_pki["app_proxy"]
        keeper = DoorKeeper(recorded)
        handler = RecordingService("app_proxy", recorded)
        grpc_port = settings.services["app_proxy"].port
        await stack.enter_async_context(grpc_server(paths, grpc_port, handler, keeper))
        http_port = settings.app_proxy_http.port
        await stack.enter_async_context(http_server(paths, http_port, recorded))
        await stack.enter_async_context(front_door(tmp_path, settings))
        client = await stack.enter_async_context(door_of(settings, recorded).client())
        sent = {"traceparent": f"00-{trace}-{parent}-01"}
        assert (await client.get("/mcp", headers=GOOD | sent)).status_code == 200
        spans = await receiver.traces.wait_for(trace, lambda found: len(found) >= 2)
    first = next(span for span in spans if span.parent_id == parent)
    assert {span.service for span in spans} == {"edge"}
    assert recorded.requests[0]["traceparent"].split("-")[1] == trace
    check = next(span for span in spans if span is not first)
    assert check.parent_id == first.span_id
    # The check is part of the trace too: it is called below a span of its own.
    assert recorded.check_metadata[0]["traceparent"].split("-")[1:3] == [trace, check.span_id]
