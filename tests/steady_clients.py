"""Clients that ask a deployment's database all the time, and notice every question that fails."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx2
import mcp
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from mcp.client.streamable_http import streamable_http_client

from tests.lives import Life
from tests.mesh import PATIENCE_SECONDS
from tests.provisioner_kills import (
    insisted,
)

# Far less than from one death to the next; without any, they are most of what a machine does.
_PAUSE_SECONDS = 0.02


async def opens(way_in: pb2.GetDatabaseConnectionResponse) -> bool:
    """Whether the password opens the database; the listener dies with the provisioner."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                connection = await asyncpg.connect(way_in.uri, timeout=PATIENCE_SECONDS)
            except asyncpg.InvalidPasswordError:
                return False
            except (OSError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError):
                await asyncio.sleep(0.05)
            else:
                await connection.close()
                return True


@dataclass
class Steady:
    """Asks the database by itself, and through the door, again and again."""

    life: Life
    direct: pb2.GetDatabaseConnectionResponse
    agent: mcp.Client
    asked: int = 0

    async def ask(self) -> None:
        # A connection of its own each time, as a program without a pool has.
        connection = await asyncpg.connect(self.direct.uri, timeout=PATIENCE_SECONDS)
        assert await connection.fetchval("SELECT 1") == 1
        await connection.close()
        answer = await self.agent.call_tool("query", {"sql": "SELECT word FROM kept"})
        assert not answer.is_error, answer.structured_content
        self.asked += 1

    async def ask_on(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def change(self) -> None:
        """Takes the passwords of now."""
        self.direct = await own_address(self.life)


async def own_address(life: Life) -> pb2.GetDatabaseConnectionResponse:
    """Returns where the server itself listens, as the front door is told."""
    stub = life.place.mesh.stub(ProvisionerServiceStub, "provisioner", "app_proxy")
    request = pb2.GetDatabaseConnectionRequest(
        deployment_id=life.app.deployment_id, role=pb2.DATABASE_ROLE_WRITER
    )
    return await insisted(lambda: stub.GetDatabaseConnection(request, metadata=life.metadata))


@asynccontextmanager
async def asking(life: Life) -> AsyncIterator[Steady]:
    """Yields while every question is answered; fails if one was not."""
    key = await life.place.mesh.key(life.customer, life.app.deployment_id)
    async with an_agent(life, key.key) as agent:
        steady = Steady(life, await own_address(life), agent)
        await steady.ask()
        running = asyncio.create_task(steady.ask_on())
        try:
            yield steady
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running
        assert steady.asked > 2


@asynccontextmanager
async def an_agent(life: Life, key: str) -> AsyncIterator[mcp.Client]:
    context = ssl.create_default_context(cafile=str(life.place.mesh.pki["edge"].authority))
    context.check_hostname = False
    files = life.place.mesh.pki["edge"]
    context.load_cert_chain(files.certificate, files.key)
    base: Any = f"https://127.0.0.1:{life.place.port}"
    headers = {"host": life.app.host, "authorization": f"Bearer {key}"}
    async with (
        httpx2.AsyncClient(base_url=base, verify=context, headers=headers, timeout=30) as client,
        mcp.Client(streamable_http_client(f"{base}/mcp", http_client=client)) as agent,
    ):
        yield agent
