"""The front door and the MCP endpoint behind it, attacked with real keys of real deployments."""

import asyncio
import json
import os
import signal
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx2
import mcp
import mcp.types
import pytest
from bulkhead.app_proxy.v1 import routing_service_pb2 as routing_pb2
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceStub
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.envoy.auth.v3 import authorization_pb2 as pb
from bulkhead.envoy.auth.v3.authorization_pb2_grpc import AuthorizationStub
from mcp.client.streamable_http import streamable_http_client

from deploy.local.ports import free_ports
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.local import remove_home
from services.shared.keyformat import new_key
from services.shared.principal import KeyKind
from tests.conftest import StartMesh
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import expect_refused

MODES = ("legacy", "auto", "2026-07-28")
# Shorter than an answer about a key is remembered for.
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Home:
    """One deployment with its key."""

    owner: Customer
    deployment_id: str
    host: str
    key: str


@dataclass(frozen=True)
class Street:
    """Two deployments of one tenant, one of another, behind one door."""

    mesh: Mesh
    port: int
    mine: Home
    sibling: Home
    theirs: Home

    @asynccontextmanager
    async def http(
        self, home: Home, key: str | None = None, peer: str = "edge"
    ) -> AsyncIterator[httpx2.AsyncClient]:
        headers = {"host": home.host, "authorization": f"Bearer {key or home.key}"}
        async with httpx2.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}",
            verify=self.tls(peer),
            headers=headers,
            timeout=30,
        ) as client:
            yield client

    @asynccontextmanager
    async def agent(
        self, home: Home, key: str | None = None, mode: str = "auto"
    ) -> AsyncIterator[mcp.Client]:
        url = f"https://127.0.0.1:{self.port}/mcp"
        async with (
            self.http(home, key) as client,
            mcp.Client(streamable_http_client(url, http_client=client), mode=mode) as agent,
        ):
            yield agent

    def tls(self, peer: str | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.mesh.pki["edge"].authority))
        context.check_hostname = False
        if peer is not None:
            files = self.mesh.pki[peer]
            context.load_cert_chain(files.certificate, files.key)
        return context

    async def check(self, host: str, **headers: str) -> pb.CheckResponse:
        http = pb.AttributeContext.HttpRequest(host=host, path="/mcp", headers=headers)
        request = pb.AttributeContext.Request(http=http)
        stub = self.mesh.stub(AuthorizationStub, "app_proxy")
        return await stub.Check(
            pb.CheckRequest(attributes=pb.AttributeContext(request=request)), timeout=10
        )

    async def present(self, home: Home, key: str) -> pb.CheckResponse:
        return await self.check(home.host, authorization=f"Bearer {key}")


async def a_home(mesh: Mesh, owner: Customer, name: str) -> Home:
    made = await mesh.deployment(owner, name=name)
    issued = await mesh.key(owner, made.deployment_id)
    return Home(owner, made.deployment_id, made.host, issued.key)


@pytest.fixture(scope="module")
async def street(start_mesh: StartMesh) -> AsyncIterator[Street]:
    (port,) = free_ports(1)
    own = {
        "app_proxy": {
            "http_listen": f"127.0.0.1:{port}",
            "statement_seconds": 2.0,
            "result_rows": 50,
            "request_bytes": 100_000,
        },
        "ratelimit": {"rate_free": 1, "burst_free": 3},
    }
    async with start_mesh(own) as mesh:
        owner, other = await mesh.customer(), await mesh.customer()
        yield Street(
            mesh,
            port,
            await a_home(mesh, owner, "mine"),
            await a_home(mesh, owner, "sibling"),
            await a_home(mesh, other, "theirs"),
        )
        await remove_home(postgres_process.reachable_home(mesh.home))


def refusal(response: pb.CheckResponse) -> tuple[int, str, dict[str, str]]:
    """Returns status, reason and headers of a denied check."""
    denied = response.denied_response
    headers = {option.header.key: option.header.value for option in denied.headers}
    assert headers["content-type"] == "application/problem+json"
    problem = json.loads(denied.body)
    assert problem["status"] == denied.status.code
    return denied.status.code, problem["reason"], headers


def said(result: mcp.types.CallToolResult) -> str:
    """Returns the text of an answer."""
    first = result.content[0]
    assert isinstance(first, mcp.types.TextContent)
    return first.text


def rows(result: Any) -> list[dict[str, Any]]:
    assert not result.is_error, said(result)
    found: list[dict[str, Any]] = result.structured_content["rows"]
    return found


async def test_the_own_key_passes_the_door(street: Street) -> None:
    response = await street.present(street.mine, street.mine.key)
    assert response.WhichOneof("http_response") == "ok_response"
    assert response.status.code == 0


@pytest.mark.promise("P-04")
async def test_a_foreign_key_gets_what_an_unknown_key_gets(street: Street) -> None:
    unknown = await street.present(street.mine, new_key(KeyKind.DEPLOYMENT))
    assert refusal(unknown)[:2] == (401, "KEY_INVALID")
    assert refusal(unknown)[2]["www-authenticate"].startswith("Bearer")
    for foreign in (
        street.sibling.key,
        street.theirs.key,
        street.mine.owner.key,
        street.theirs.owner.key,
        street.mesh.operator_key,
        street.mine.key[:-1],
        street.mine.key.swapcase(),
        "garbage",
        f"{street.mine.key},{street.mine.key}",
    ):
        assert await street.present(street.mine, foreign) == unknown


async def test_no_key_is_told_apart_from_a_wrong_one(street: Street) -> None:
    for headers in ({}, {"authorization": ""}, {"authorization": f"Basic {street.mine.key}"}):
        code, reason, answer = refusal(await street.check(street.mine.host, **headers))
        assert (code, reason) == (401, "KEY_MISSING")
        assert answer["www-authenticate"].startswith("Bearer")


async def test_a_key_elsewhere_than_in_its_header_is_not_seen(street: Street) -> None:
    key = street.mine.key
    for headers in ({"x-api-key": key}, {"cookie": f"key={key}"}, {"x-bulkhead-key": key}):
        assert refusal(await street.check(street.mine.host, **headers))[:2] == (401, "KEY_MISSING")


@pytest.mark.promise("P-11")
@pytest.mark.parametrize("host", ["nobody.localhost", "localhost", "", "::1", "a b", "*.localhost"])
async def test_an_unknown_host_is_not_found_whatever_the_key(street: Street, host: str) -> None:
    key = f"Bearer {street.mine.key}"
    assert refusal(await street.check(host, authorization=key))[:2] == (404, "RESOURCE_NOT_FOUND")


async def test_a_host_is_found_however_it_is_written(street: Street) -> None:
    key = f"Bearer {street.mine.key}"
    for host in (street.mine.host.upper(), f"{street.mine.host}:8080", f"{street.mine.host}.:80"):
        response = await street.check(host, authorization=key)
        assert response.WhichOneof("http_response") == "ok_response", host


async def test_forged_headers_are_taken_away(street: Street) -> None:
    forged = {"x-bulkhead-tenant": "ten_x", "x-bulkhead-deployment-id": "dep_x"}
    response = await street.check(
        street.mine.host, authorization=f"Bearer {street.mine.key}", **forged
    )
    assert sorted(response.ok_response.headers_to_remove) == sorted(forged)
    assert "authorization" not in response.ok_response.headers_to_remove


async def test_only_the_front_door_may_ask(street: Street) -> None:
    for peer in ("auth", "ratelimit", "provisioner", "app_proxy"):
        stub = street.mesh.stub(AuthorizationStub, "app_proxy", peer)
        with expect_refused("PERMISSION_DENIED", "PEER_REFUSED"):
            await stub.Check(pb.CheckRequest())


async def test_a_request_without_anything_is_refused_not_an_error(street: Street) -> None:
    stub = street.mesh.stub(AuthorizationStub, "app_proxy")
    assert refusal(await stub.Check(pb.CheckRequest()))[:2] == (404, "RESOURCE_NOT_FOUND")


@pytest.mark.parametrize(
    ("state", "status", "reason", "wait"),
    [
        (routing_pb2.ROUTE_STATE_STARTING, 503, "DEPLOYMENT_NOT_READY", "1"),
        (routing_pb2.ROUTE_STATE_FAILED, 503, "OPERATION_FAILED", "60"),
        (routing_pb2.ROUTE_STATE_SUSPENDED, 402, "DEPLOYMENT_SUSPENDED", None),
    ],
)
async def test_a_deployment_that_is_not_running_says_so_before_any_key(
    street: Street, state: Any, status: int, reason: str, wait: str | None
) -> None:
    stub = street.mesh.stub(RoutingServiceStub, "app_proxy", "provisioner")
    route = routing_pb2.Route(
        host=f"state-{state}.localhost", deployment_id=f"dep_{state}", state=state, name="x"
    )
    await stub.PutRoute(
        routing_pb2.PutRouteRequest(route=route), metadata=bearer(street.mine.owner.key)
    )
    code, said, headers = refusal(await street.check(route.host))
    assert (code, said, headers.get("retry-after")) == (status, reason, wait)
    page = await street.check(route.host, accept="text/html,*/*;q=0.8")
    assert page.denied_response.status.code == status
    assert page.denied_response.body.startswith("<!doctype html>")
    # Whoever has a key learns no more: nobody's request reaches what is behind the door.
    home = Home(street.mine.owner, route.deployment_id, route.host, street.mine.key)
    async with street.http(home) as client:
        for path in ("/mcp", "/llms.txt", "/manifest.json"):
            answer = await client.request("POST" if path == "/mcp" else "GET", path, json={})
            assert (answer.status_code, answer.json()["reason"]) == (status, reason)


@pytest.mark.promise("P-05")
async def test_over_the_burst_is_429_with_whole_seconds(street: Street) -> None:
    owner = await street.mesh.customer(plan=auth_pb2.PLAN_FREE)
    home = await a_home(street.mesh, owner, "free")
    answers = await asyncio.gather(*(street.present(home, home.key) for _ in range(12)))
    denied = [answer for answer in answers if answer.WhichOneof("http_response") != "ok_response"]
    assert 3 <= len(answers) - len(denied) <= 5
    for answer in denied:
        code, reason, headers = refusal(answer)
        assert (code, reason) == (429, "BURST_EXCEEDED")
        assert int(headers["retry-after"]) >= 1
    neighbour = await street.present(street.mine, street.mine.key)
    assert neighbour.WhichOneof("http_response") == "ok_response"


async def test_a_revoked_key_is_refused_long_before_its_answer_is_too_old(street: Street) -> None:
    issued = await street.mesh.key(street.mine.owner, street.mine.deployment_id)
    before = await street.present(street.mine, issued.key)
    assert before.WhichOneof("http_response") == "ok_response"
    await street.mesh.stub(AuthServiceStub, "auth").RevokeKey(
        auth_pb2.RevokeKeyRequest(key_id=issued.key_id),
        metadata=bearer(street.mine.owner.key),
    )
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while True:
            answer = await street.present(street.mine, issued.key)
            if answer.WhichOneof("http_response") != "ok_response":
                break
    assert refusal(answer)[:2] == (401, "KEY_INVALID")
    async with street.http(street.mine, issued.key) as client:
        assert (await client.get("/llms.txt")).status_code == 401


@pytest.mark.parametrize("mode", MODES)
async def test_an_agent_works_with_its_database_in_every_protocol(
    street: Street, mode: str
) -> None:
    async with street.agent(street.mine, mode=mode) as agent:
        tools = {tool.name: tool for tool in (await agent.list_tools()).tools}
        assert list(tools) == ["list_tables", "describe_table", "query", "execute"]
        for tool in tools.values():
            assert tool.annotations is not None
            assert tool.annotations.read_only_hint is (tool.name != "execute")
            assert tool.output_schema is not None
        await agent.call_tool("execute", {"sql": "DROP TABLE IF EXISTS notes"})
        made = await agent.call_tool(
            "execute", {"sql": "CREATE TABLE notes (id int PRIMARY KEY, body text)"}
        )
        assert made.structured_content["command"] == "CREATE TABLE"
        put = await agent.call_tool(
            "execute", {"sql": "INSERT INTO notes VALUES ($1, $2)", "params": ["1", "héllo"]}
        )
        assert put.structured_content["affected"] == 1
        got = await agent.call_tool(
            "query", {"sql": "SELECT * FROM notes WHERE id = $1", "params": [1]}
        )
        assert rows(got) == [{"id": 1, "body": "héllo"}]
        assert json.loads(said(got)) == got.structured_content
        listed = await agent.call_tool("list_tables", {})
        assert "notes" in {table["name"] for table in listed.structured_content["tables"]}
        described = await agent.call_tool("describe_table", {"table": "notes"})
        assert described.structured_content["keys"][0]["kind"] == "primary"


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_instructions_point_to_llms_txt(street: Street, mode: str) -> None:
    async with street.agent(street.mine, mode=mode) as agent:
        assert "/llms.txt" in (agent.instructions or "")


@pytest.mark.promise("P-01")
async def test_two_deployments_of_one_tenant_see_none_of_each_other(street: Street) -> None:
    async with street.agent(street.mine) as mine, street.agent(street.sibling) as sibling:
        await mine.call_tool("execute", {"sql": "CREATE TABLE IF NOT EXISTS only_mine (x int)"})
        seen = await sibling.call_tool("query", {"sql": "SELECT * FROM only_mine"})
        assert seen.is_error
        assert "42P01" in said(seen)
        where = "SELECT current_setting('port') AS port, pg_postmaster_start_time() AS started"
        assert rows(await mine.call_tool("query", {"sql": where})) != rows(
            await sibling.call_tool("query", {"sql": where})
        )


@pytest.mark.promise("P-04")
@pytest.mark.parametrize("path", ["/mcp", "/llms.txt", "/manifest.json", "/", "/anything"])
async def test_a_foreign_key_is_refused_behind_the_door_as_well(street: Street, path: str) -> None:
    for key in (street.sibling.key, street.theirs.key, street.mine.owner.key, "x"):
        async with street.http(street.mine, key) as client:
            answer = await client.request("POST" if path == "/mcp" else "GET", path, json={})
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert answer.json()["reason"] == "KEY_INVALID"


async def test_host_games_reach_no_other_deployment(street: Street) -> None:
    async with street.http(street.mine) as client:
        for host in (street.theirs.host, street.sibling.host):
            answer = await client.get("/llms.txt", headers={"host": host})
            assert answer.status_code == 401
        for host in ("evil.example", "127.0.0.1", f"{street.mine.host}@evil.example", "a,b"):
            answer = await client.get("/llms.txt", headers={"host": host})
            assert answer.status_code == 404
        for forged in ("x-forwarded-host", "forwarded", "x-original-host", ":authority2"):
            answer = await client.get("/llms.txt", headers={forged.strip(":"): street.theirs.host})
            assert answer.status_code == 200
            assert answer.text.startswith("# mine")


@pytest.mark.parametrize("second", ["Host: {theirs}", "HOST: {mine}", "host : {theirs}"])
async def test_two_hosts_in_one_request_are_no_host(street: Street, second: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", street.port, ssl=street.tls("edge"))
    other = second.format(mine=street.mine.host, theirs=street.theirs.host)
    writer.write(
        f"GET /llms.txt HTTP/1.1\r\nHost: {street.mine.host}\r\n{other}\r\n"
        f"Authorization: Bearer {street.mine.key}\r\nConnection: close\r\n\r\n".encode()
    )
    status = await asyncio.wait_for(reader.readline(), _PATIENCE_SECONDS)
    writer.close()
    assert status.split()[1] == b"400"


async def test_two_keys_in_one_request_are_no_key(street: Street) -> None:
    async with street.http(street.mine) as client:
        request = client.build_request("GET", "/llms.txt")
        keys = [("authorization", f"Bearer {home.key}") for home in (street.mine, street.theirs)]
        request.headers = httpx2.Headers([("host", street.mine.host), *keys])
        assert (await client.send(request)).status_code == 401


async def test_an_origin_from_elsewhere_needs_the_key_all_the_same(street: Street) -> None:
    async with street.http(street.mine) as client:
        answer = await client.post(
            "/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"},
            headers={"accept": "application/json", "origin": "https://evil.example"},
        )
        # The host is the door's business and the key travels in no cookie: nothing to rebind.
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("peer", ["auth", "ratelimit", "provisioner", "app_proxy", None])
async def test_only_the_front_door_may_connect(street: Street, peer: str | None) -> None:
    async with httpx2.AsyncClient(verify=street.tls(peer)) as client:
        with pytest.raises(httpx2.TransportError):
            await client.get(f"https://127.0.0.1:{street.port}/llms.txt")


async def test_a_key_without_db_write_neither_sees_nor_runs_execute(street: Street) -> None:
    reader = await street.mesh.key(street.mine.owner, street.mine.deployment_id, ("db:read",))
    async with street.agent(street.mine, reader.key) as agent:
        names = {tool.name for tool in (await agent.list_tools()).tools}
        assert names == {"list_tables", "describe_table", "query"}
        answer = await agent.call_tool("execute", {"sql": "CREATE TABLE sneaked ()"})
        assert answer.is_error
        assert "db:write" in said(answer)
        for sql in ("CREATE TABLE sneaked ()", "INSERT INTO only_mine VALUES (1)"):
            assert (await agent.call_tool("query", {"sql": sql})).is_error
    async with street.http(street.mine, reader.key) as client:
        text = (await client.get("/llms.txt")).text
        assert "`query`" in text
        assert "`execute`" not in text


async def test_a_key_without_any_database_scope_gets_no_schema(street: Street) -> None:
    metered = await street.mesh.key(street.mine.owner, street.mine.deployment_id, ("usage:read",))
    async with street.http(street.mine, metered.key) as client:
        for path in ("/llms.txt", "/manifest.json"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["reason"]) == (403, "SCOPE_MISSING")
    async with street.agent(street.mine, metered.key) as agent:
        assert (await agent.list_tools()).tools == []
        assert (await agent.call_tool("query", {"sql": "SELECT 1"})).is_error


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("query", {}, "sql"),
        ("query", {"sql": ""}, "sql"),
        ("query", {"sql": 5}, "sql"),
        ("query", {"sql": "SELECT 1", "params": "x"}, "params"),
        ("query", {"sql": "SELECT 1", "params": {"a": 1}}, "params"),
        ("query", {"sql": "SELECT 1", "limit": 5}, "limit"),
        ("query", {"sql": "SELECT 1; SELECT 2"}, "42601"),
        ("query", {"sql": "COMMIT"}, "COMMIT"),
        ("query", {"sql": "SELECT pg_sleep(60)"}, "57014"),
        ("query", {"sql": "SELECT * FROM missing"}, "42P01"),
        ("query", {"sql": "SELECT $1::int", "params": ["x"]}, "22P02"),
        ("query", {"sql": "SELECT pg_read_file('/etc/passwd')"}, "42501"),
        ("execute", {"sql": "COPY (SELECT 1) TO PROGRAM 'id'"}, "COPY"),
        ("execute", {"sql": "CREATE ROLE evil SUPERUSER"}, "42501"),
        ("execute", {"sql": "ALTER SYSTEM SET port = 1"}, "ERROR"),
        ("execute", {"sql": "SET ROLE postgres"}, "SET"),
        ("describe_table", {"table": "missing"}, "42P01"),
        ("describe_table", {"table": ["x"]}, "table"),
        ("describe_table", {"table": "pg_authid", "schema": "pg_catalog"}, "42P01"),
        ("list_tables", {"x": 1}, "x"),
    ],
)
async def test_what_cannot_be_done_is_a_tool_error_and_never_a_stack(
    street: Street, name: str, arguments: dict[str, Any], says: str
) -> None:
    async with street.agent(street.mine) as agent:
        answer = await agent.call_tool(name, arguments)
        assert answer.is_error
        assert says in said(answer)
        assert "Traceback" not in said(answer)
        assert "asyncpg" not in said(answer)


async def test_an_unknown_tool_is_a_protocol_error(street: Street) -> None:
    async with street.agent(street.mine) as agent:
        with pytest.raises(mcp.MCPError, match="no such tool"):
            await agent.call_tool("drop_everything", {})


async def test_a_cut_result_says_so_in_both_forms(street: Street) -> None:
    async with street.agent(street.mine) as agent:
        answer = await agent.call_tool("query", {"sql": "SELECT generate_series(1, 1000) AS n"})
        assert not answer.is_error
        content = answer.structured_content
        assert (content["row_count"], content["truncated"]) == (50, True)
        assert "50 rows" in content["truncated_reason"]
        note = answer.content[1]
        assert isinstance(note, mcp.types.TextContent)
        assert note.text.startswith("TRUNCATED")


@pytest.mark.promise("P-06")
async def test_llms_txt_and_the_manifest_follow_the_schema(street: Street) -> None:
    async with street.agent(street.sibling) as agent, street.http(street.sibling) as client:
        first = await client.get("/llms.txt")
        assert first.status_code == 200
        assert first.text.startswith("# sibling\n")
        await agent.call_tool("execute", {"sql": "CREATE TABLE invoices (total numeric(10,2))"})
        await agent.call_tool("execute", {"sql": "COMMENT ON TABLE invoices IS 'What is owed'"})
        second = await client.get("/llms.txt", headers={"if-none-match": first.headers["etag"]})
        assert second.status_code == 200
        assert "- `invoices` (table) — What is owed" in second.text
        assert "numeric(10,2)" in second.text
        same = await client.get("/llms.txt", headers={"if-none-match": second.headers["etag"]})
        assert same.status_code == 304
        manifest = (await client.get("/manifest.json")).json()
        assert [tool["name"] for tool in manifest["tools"]][-1] == "execute"
        tables = {table["name"]: table for table in manifest["schema"]["tables"]}
        assert tables["invoices"]["columns"][0]["type"] == "numeric(10,2)"
    async with street.http(street.mine) as client:
        assert "invoices" not in (await client.get("/llms.txt")).text


async def test_methods_paths_and_sizes_that_are_not_served(street: Street) -> None:
    async with street.http(street.mine) as client:
        for method in ("GET", "DELETE", "PUT", "OPTIONS"):
            answer = await client.request(method, "/mcp")
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        for path in ("/other", "/llms.txt/", "/mcp/", "/manifest.json/", "//mcp"):
            missing = await client.request("POST" if "mcp" in path else "GET", path)
            assert (missing.status_code, missing.json()["reason"]) == (404, "RESOURCE_NOT_FOUND")
            assert "location" not in missing.headers
        headers = {"content-type": "application/json", "accept": "application/json"}
        large = await client.post("/mcp", content=b"x" * 200_000, headers=headers)
        assert large.status_code == 413
        for junk in (b"", b"{", b"[]", b"null", b"[" * 50_000, b"\xff\xfe"):
            answer = await client.post("/mcp", content=junk, headers=headers)
            assert answer.status_code == 400
            assert "Traceback" not in answer.text


@pytest.mark.promise("P-38")
async def test_a_deployment_that_takes_all_its_room_leaves_its_neighbours_theirs(
    street: Street,
) -> None:
    async with street.agent(street.theirs) as busy, street.agent(street.mine) as neighbour:
        slow = [
            asyncio.create_task(busy.call_tool("query", {"sql": "SELECT pg_sleep(1)"}))
            for _ in range(12)
        ]
        async with asyncio.timeout(_PATIENCE_SECONDS):
            answers = [
                rows(await neighbour.call_tool("query", {"sql": "SELECT 1 AS x"}))
                for _ in range(10)
            ]
        assert not all(task.done() for task in slow)
        assert answers == [[{"x": 1}]] * 10
        for answer in await asyncio.gather(*slow):
            assert not answer.is_error or "in use" in said(answer)


COSTLY = (
    "SELECT ('[' || rtrim(repeat('[1],', 3500000), ',') || ']')::json",
    "SELECT json_agg(json_build_object('a', g, 'b', array[g, g])) FROM generate_series(1, 6000) g",
    "SELECT array_agg(g) FROM generate_series(1, 19000) g",
    f"SELECT {', '.join(['1.5::numeric'] * 1600)} FROM generate_series(1, 50)",
)
# Of processor time. A check takes milliseconds; it took as long as the costliest result: seconds.
_MOST_CHECK_SECONDS = 2.0


@pytest.mark.promise("P-38")
async def test_costly_results_of_one_deployment_do_not_hold_up_the_door(street: Street) -> None:
    async with street.agent(street.theirs) as busy:

        async def ask() -> None:
            for sql in COSTLY:
                await busy.call_tool("query", {"sql": sql})

        asking = asyncio.gather(*(ask() for _ in range(4)))
        longest = 0.0
        while not asking.done():
            began = time.thread_time()
            answer = await street.present(street.mine, street.mine.key)
            longest = max(longest, time.thread_time() - began)
            if answer.WhichOneof("http_response") != "ok_response":
                # Asked as often as this, the neighbour's own limit may speak, and nothing else.
                assert refusal(answer)[0] == 429
        await asking
        assert longest < _MOST_CHECK_SECONDS


def kill_server(street: Street, port: int) -> None:
    """Kills, as a crash would, the server that listens on `port`."""
    for file in postgres_process.reachable_home(street.mesh.home).rglob("postmaster.pid"):
        running = postgres_process.running(file.parent)
        if running is not None and running.port == port:
            os.kill(running.pid, signal.SIGKILL)
            return
    raise AssertionError(f"no server listens on {port}")


@pytest.mark.promise("P-12")
async def test_a_killed_server_is_back_for_the_next_query(street: Street) -> None:
    where = "SELECT current_setting('port')::int AS port, pg_postmaster_start_time() AS started"
    async with street.agent(street.theirs) as agent:
        (before,) = rows(await agent.call_tool("query", {"sql": where}))
        kill_server(street, before["port"])
        after = before
        async with asyncio.timeout(_PATIENCE_SECONDS):
            # A session can outlive its server for a moment, and answer.
            while after["started"] == before["started"]:
                answer = await agent.call_tool("query", {"sql": where})
                if answer.is_error:
                    assert "try again" in said(answer) or "away" in said(answer)
                else:
                    (after,) = rows(answer)


async def test_ending_ones_own_sessions_ends_nothing_else(street: Street) -> None:
    async with street.agent(street.theirs) as agent, street.agent(street.mine) as neighbour:
        ended = await agent.call_tool(
            "query", {"sql": "SELECT pg_terminate_backend(pg_backend_pid())"}
        )
        assert ended.is_error
        assert rows(await agent.call_tool("query", {"sql": "SELECT 1 AS x"})) == [{"x": 1}]
        assert rows(await neighbour.call_tool("query", {"sql": "SELECT 1 AS x"})) == [{"x": 1}]


@pytest.mark.promise("P-11")
async def test_a_deleted_deployments_host_is_unknown_at_once(street: Street) -> None:
    home = await a_home(street.mesh, street.mine.owner, "gone")
    stub = street.mesh.stub(RoutingServiceStub, "app_proxy", "provisioner")
    await stub.DeleteRoute(
        routing_pb2.DeleteRouteRequest(deployment_id=home.deployment_id),
        metadata=bearer(home.owner.key),
    )
    assert refusal(await street.present(home, home.key))[0] == 404
    async with street.http(home) as client:
        assert (await client.get("/llms.txt")).status_code == 404


async def test_a_deployment_without_mcp_serves_none_of_it(street: Street) -> None:
    made = await street.mesh.deployment(street.mine.owner, mcp=False, name="plain")
    issued = await street.mesh.key(street.mine.owner, made.deployment_id)
    home = Home(street.mine.owner, made.deployment_id, made.host, issued.key)
    async with street.http(home) as client:
        for path in ("/mcp", "/llms.txt", "/manifest.json"):
            assert (await client.post(path, json={})).status_code == 404


async def test_an_unexpected_caller_of_the_routing_service_is_refused(street: Street) -> None:
    stub = street.mesh.stub(RoutingServiceStub, "app_proxy", "edge")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetRoute(
            routing_pb2.GetRouteRequest(host=street.mine.host),
            metadata=bearer(street.mine.owner.key),
        )
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
