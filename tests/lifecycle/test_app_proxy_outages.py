"""app_proxy while others are away, and while it ends itself: closed, never open, never cut off."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2
import mcp
import mcp.types
import pytest
from bulkhead.envoy.auth.v3 import authorization_pb2 as pb
from bulkhead.envoy.auth.v3.authorization_pb2_grpc import AuthorizationStub
from mcp.client.streamable_http import streamable_http_client

from deploy.local.ports import free_ports
from services.app_proxy.server import compose
from services.app_proxy.settings import Settings
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.local import remove_home
from tests.conftest import StartMesh
from tests.mesh import Mesh

_PATIENCE_SECONDS = 45.0


@dataclass(frozen=True)
class Fragile:
    """A deployment in a mesh whose services a test may stop."""

    mesh: Mesh
    port: int
    host: str
    key: str

    async def check(self) -> tuple[int, str, dict[str, str]]:
        http = pb.AttributeContext.HttpRequest(
            host=self.host, path="/mcp", headers={"authorization": f"Bearer {self.key}"}
        )
        request = pb.CheckRequest(
            attributes=pb.AttributeContext(request=pb.AttributeContext.Request(http=http))
        )
        answer = await self.mesh.stub(AuthorizationStub, "app_proxy").Check(request, timeout=10)
        if answer.WhichOneof("http_response") == "ok_response":
            return 200, "", {}
        denied = answer.denied_response
        headers = {option.header.key: option.header.value for option in denied.headers}
        return denied.status.code, json.loads(denied.body)["reason"], headers

    async def until(self, status: int) -> tuple[int, str, dict[str, str]]:
        """Returns the first check that answers `status`; until then it is closed, never open."""
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (answer := await self.check())[0] != status:
                assert answer[0] in (200, 503)
                # What is remembered of a key is good for a lease: no limit is to be passed by then.
                await asyncio.sleep(0.02)
        return answer

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[mcp.Client]:
        files = self.mesh.pki["edge"]
        context = ssl.create_default_context(cafile=str(files.authority))
        context.check_hostname = False
        context.load_cert_chain(files.certificate, files.key)
        headers = {"host": self.host, "authorization": f"Bearer {self.key}"}
        url = f"https://127.0.0.1:{self.port}/mcp"
        async with (
            httpx2.AsyncClient(verify=context, headers=headers, timeout=30) as http,
            mcp.Client(streamable_http_client(url, http_client=http)) as agent,
        ):
            yield agent


@pytest.fixture(scope="module")
async def fragile(start_mesh: StartMesh) -> AsyncIterator[Fragile]:
    (port,) = free_ports(1)
    own = {"app_proxy": {"http_listen": f"127.0.0.1:{port}", "grace_seconds": 5.0}}
    async with start_mesh(own) as mesh:
        customer = await mesh.customer()
        made = await mesh.deployment(customer)
        issued = await mesh.key(customer, made.deployment_id)
        yield Fragile(mesh, port, made.host, issued.key)
        await remove_home(postgres_process.reachable_home(mesh.home))


def said(result: mcp.types.CallToolResult) -> str:
    first = result.content[0]
    assert isinstance(first, mcp.types.TextContent)
    return first.text


@pytest.mark.parametrize("service", ["auth", "ratelimit"])
async def test_a_service_that_is_away_closes_the_door_until_it_is_back(
    fragile: Fragile, service: str
) -> None:
    await fragile.until(200)
    await fragile.mesh.stop(service)
    try:
        _, reason, headers = await fragile.until(503)
        assert reason == "DEPENDENCY_UNAVAILABLE"
        assert int(headers["retry-after"]) >= 1
        for _ in range(3):
            assert (await fragile.check())[0] == 503
    finally:
        await fragile.mesh.start(service)
    await fragile.until(200)


async def test_an_open_pool_works_on_while_the_provisioner_is_away(fragile: Fragile) -> None:
    await fragile.until(200)
    async with fragile.agent() as agent:
        assert not (await agent.call_tool("query", {"sql": "SELECT 1"})).is_error
        await fragile.mesh.stop("provisioner")
        try:
            assert not (await agent.call_tool("query", {"sql": "SELECT 1"})).is_error
            # The writer's pool was never opened, and nobody can be asked where it leads.
            async with asyncio.timeout(_PATIENCE_SECONDS):
                answer = await agent.call_tool("execute", {"sql": "SELECT 1"})
            assert answer.is_error
            assert "try again" in said(answer)
        finally:
            await fragile.mesh.start("provisioner")
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while (await agent.call_tool("execute", {"sql": "SELECT 1"})).is_error:
                pass


async def test_a_statement_in_flight_is_answered_before_the_service_ends(
    fragile: Fragile,
) -> None:
    await fragile.until(200)
    async with fragile.agent() as agent:
        await agent.call_tool("query", {"sql": "SELECT 1"})
        slow = asyncio.create_task(
            agent.call_tool(
                "query", {"sql": "SELECT 'whole' AS x, pg_advisory_lock(7), pg_sleep(1.5)"}
            )
        )
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                busy = await agent.call_tool(
                    "query", {"sql": "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'"}
                )
                if 'row_count":1' in said(busy):
                    break
        await fragile.mesh.stop("app_proxy")
        answer = await slow
        assert not answer.is_error
        assert "whole" in said(answer)
    await fragile.mesh.start("app_proxy")
    await fragile.until(200)


async def test_a_taken_http_port_is_an_error_at_start(fragile: Fragile) -> None:
    settings = fragile.mesh.settings["app_proxy"].model_copy(
        update={"listen": "127.0.0.1:0", "http_listen": f"127.0.0.1:{fragile.port}"}
    )
    assert isinstance(settings, Settings)
    with pytest.raises(OSError, match="in use"):
        async with compose(settings):
            pass
