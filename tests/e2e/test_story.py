"""The main job, from outside: a tenant, a deployment, a key, and an agent that runs SQL."""

import asyncio
import time

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.keyformat import new_key
from services.shared.principal import KeyKind
from tests.e2e.outside import Stack, http_client, problem, run_anew, texts
from tests.mesh import bearer


async def test_up_says_where_everything_is_and_keeps_the_operators_key_private(
    stack: Stack,
) -> None:
    assert stack.api.startswith("localhost:")
    assert stack.edge.startswith("http://localhost:")
    assert stack.operator_key_file.stat().st_mode & 0o777 == 0o600
    names = {each["name"] for each in (await stack.status())["processes"]}
    services = {"auth", "ratelimit", "credentials", "provisioner", "app_proxy"}
    assert names == {"postgres", "valkey", "s3", "edge", *services}


@pytest.mark.promise("P-01")
async def test_two_tenants_work_in_two_databases(stack: Stack) -> None:
    one, two = await asyncio.gather(stack.tenant(), stack.tenant())
    mine, theirs = await asyncio.gather(one.deployment(), two.deployment())
    assert mine.host != theirs.host
    for deployment, word in ((mine, "mine"), (theirs, "theirs")):
        async with deployment.agent() as agent:
            made = await agent.call_tool("execute", {"sql": "CREATE TABLE word (word text)"})
            assert not made.is_error, texts(made)
            await agent.call_tool(
                "execute", {"sql": "INSERT INTO word VALUES ($1)", "params": [word]}
            )
            read = await agent.call_tool("query", {"sql": "SELECT word FROM word"})
            assert word in texts(read)
    async with mine.agent() as agent:
        read = await agent.call_tool("query", {"sql": "SELECT word FROM word"})
        assert "theirs" not in texts(read)
    servers = {each["deployment_id"]: each for each in (await stack.status())["servers"]}
    a, b = servers[mine.deployment_id], servers[theirs.deployment_id]
    assert a["pid"] != b["pid"]
    assert a["data_directory"] != b["data_directory"]


@pytest.mark.promise("P-04")
async def test_the_door_opens_to_the_deployments_own_key_alone(stack: Stack) -> None:
    tenant = await stack.tenant()
    mine, sibling = await tenant.deployment(), await tenant.deployment()
    assert (await mine.get("/llms.txt")).status_code == 200
    foreign = [sibling.key, tenant.key, new_key(KeyKind.DEPLOYMENT), "garbage"]
    answers = [await mine.get("/llms.txt", key=key) for key in foreign]
    assert {problem(answer) for answer in answers} == {(401, "KEY_INVALID")}
    assert len({answer.text for answer in answers}) == 1
    assert all(answer.headers["www-authenticate"].startswith("Bearer") for answer in answers)
    assert problem(await mine.get("/llms.txt", key=""))[0] == 401


async def test_a_host_that_nobody_has_is_not_found(stack: Stack) -> None:
    async with http_client(new_key(KeyKind.DEPLOYMENT)) as http:
        for host in ("nobody-00000000.localhost", "a.b.localhost", "example.com"):
            answer = await http.get(f"http://{host}:{stack.port}/mcp")
            assert problem(answer)[0] == 404


@pytest.mark.promise("P-05")
async def test_over_the_burst_is_refused_with_a_wait_that_is_true(stack: Stack) -> None:
    tenant = await stack.tenant("free")
    deployment = await tenant.deployment()
    answers = await asyncio.gather(*(deployment.get("/llms.txt") for _ in range(20)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert refused
    assert {problem(answer) for answer in refused} == {(429, "BURST_EXCEEDED")}
    await asyncio.sleep(max(int(answer.headers["retry-after"]) for answer in refused))
    assert (await deployment.get("/llms.txt")).status_code == 200
    usage = (await tenant.run("usage", "--deployment", deployment.deployment_id, "--json")).json
    assert usage["used"] == 20 - len(refused) + 1
    assert usage["limit"] == 1_000


async def test_a_revoked_key_is_refused_long_before_its_answer_is_too_old(stack: Stack) -> None:
    tenant = await stack.tenant()
    deployment = await tenant.deployment()
    assert (await deployment.get("/llms.txt")).status_code == 200
    revoked = await tenant.run("key", "revoke", deployment.key_id, "--json")
    assert revoked.code == 0
    deadline = time.monotonic() + 20.0
    while (answer := await deployment.get("/llms.txt")).status_code == 200:
        assert time.monotonic() < deadline
    assert problem(answer) == (401, "KEY_INVALID")


async def test_a_key_that_may_only_read_does_not_write(stack: Stack) -> None:
    tenant = await stack.tenant()
    deployment = await tenant.deployment()
    narrow = (
        await tenant.run(
            "key", "issue", "--deployment", deployment.deployment_id, "--scope", "db:read", "--json"
        )
    ).json
    async with deployment.agent(narrow["key"]) as agent:
        tools = {tool.name for tool in (await agent.list_tools()).tools}
        assert tools >= {"list_tables", "describe_table", "query"}
        refused = await agent.call_tool("execute", {"sql": "CREATE TABLE t (n int)"})
        assert refused.is_error
        assert "db:write" in texts(refused)
        sneaky = await agent.call_tool("query", {"sql": "CREATE TABLE t (n int)"})
        assert sneaky.is_error
        assert "25006" in texts(sneaky) or "42501" in texts(sneaky)


@pytest.mark.promise("P-06")
async def test_llms_txt_and_manifest_follow_the_schema(stack: Stack) -> None:
    deployment = await (await stack.tenant()).deployment()
    before = (await deployment.get("/manifest.json")).text + (
        await deployment.get("/llms.txt")
    ).text
    assert "invoices" not in before
    async with deployment.agent() as agent:
        assert "llms.txt" in (agent.instructions or "")
        await agent.call_tool("execute", {"sql": "CREATE TABLE invoices (amount numeric)"})
    assert "invoices" in (await deployment.get("/llms.txt")).text
    assert "invoices" in str((await deployment.get("/manifest.json")).json())


async def test_while_it_is_being_made_its_host_says_come_again(stack: Stack) -> None:
    tenant = await stack.tenant()
    made = (
        await tenant.run(
            "deployment", "create", "soon", "--mcp", "--database", "--no-wait", "--json"
        )
    ).json
    async with http_client() as http:
        url = f"http://{made['host']}:{stack.port}/mcp"
        answer = await http.get(url)
        # Made in well under a second: it may be done before the first look.
        if answer.status_code == 503:
            assert problem(answer) == (503, "DEPLOYMENT_NOT_READY")
            assert int(answer.headers["retry-after"]) >= 1
        async with asyncio.timeout(30):
            while answer.status_code == 503:
                answer = await http.get(url)
        assert answer.status_code == 401


async def test_a_deleted_deployment_is_gone_from_the_door_and_from_the_machine(
    stack: Stack,
) -> None:
    tenant = await stack.tenant()
    deployment = await tenant.deployment()
    deleted = await tenant.run("deployment", "delete", deployment.deployment_id, "--json")
    assert deleted.code == 0, deleted.err
    assert problem(await deployment.get("/llms.txt"))[0] == 404
    servers = (await stack.status())["servers"]
    assert deployment.deployment_id not in {each["deployment_id"] for each in servers}
    listed = (await tenant.run("deployment", "list", "--json")).json
    assert listed["deployments"] == []


async def test_the_command_line_refuses_with_a_reason_and_its_own_exit_codes(stack: Stack) -> None:
    tenant = await stack.tenant()
    api, key = stack.api, tenant.key
    unknown = await run_anew("deployment", "get", "dep_" + "0" * 26, key=key, api=api)
    assert (unknown.code, "RESOURCE_NOT_FOUND" in unknown.err) == (1, True)
    empty = await tenant.run("deployment", "create", "", "--database")
    assert (empty.code, "name" in empty.err) == (1, True)
    assert (await run_anew("deployment", "create", key=key, api=api)).code == 2
    assert (await tenant.run("tenant", "create", "x", "--plan", "gold")).code == 2


async def test_what_is_meant_for_peers_cannot_be_reached_from_outside(stack: Stack) -> None:
    tenant = await stack.tenant()
    async with grpc.aio.insecure_channel(stack.api) as channel:
        stub = AuthServiceStub(channel)
        answer = await stub.GetTenant(auth_pb2.GetTenantRequest(), metadata=bearer(tenant.key))
        assert answer.tenant.name == "acme"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ResolveKeys(auth_pb2.ResolveKeysRequest(digests=[b"0" * 32]))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Delegate(auth_pb2.DelegateRequest(purpose="x"), metadata=bearer(tenant.key))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_sql_that_fails_is_a_tools_error_with_its_sqlstate(stack: Stack) -> None:
    deployment = await (await stack.tenant()).deployment()
    async with deployment.agent() as agent:
        for sql, sqlstate in (
            ("SELECT * FROM nowhere", "42P01"),
            ("SELEC 1", "42601"),
            ("SELECT 1/0", "22012"),
            ("SELECT pg_read_file('/etc/passwd')", "42501"),
        ):
            answer = await agent.call_tool("query", {"sql": sql})
            assert answer.is_error
            assert sqlstate in texts(answer)
            assert "Traceback" not in texts(answer)
