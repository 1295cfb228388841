"""A deployment's database that sleeps and wakes, as tests look at it."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx2
import mcp
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from mcp.client.streamable_http import streamable_http_client

from services.provisioner.drivers import postgres_process
from services.provisioner.settings import Settings
from services.shared.postgres import connect
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer

IDLE_SECONDS = 0.3
NEVER_SECONDS = 3_600.0


@dataclass(frozen=True)
class Bed:
    """A deployment's database, and how to look at it."""

    mesh: Mesh
    owner: Customer
    deployment_id: str
    host: str
    reader: str
    writer: str
    port: int

    @property
    def directory(self) -> Path:
        return postgres_process.reachable_home(self.mesh.home) / self.deployment_id

    @property
    def pid(self) -> int | None:
        server = postgres_process.running(self.directory)
        return None if server is None else server.pid

    async def sleeps_after(self, seconds: float) -> None:
        await self.sql(
            "UPDATE deployments SET idle_seconds = $2 WHERE deployment_id = $1",
            self.deployment_id,
            seconds,
        )

    async def fall_asleep(self) -> None:
        """Returns when it sleeps, and will not do so again soon."""
        await self.sleeps_after(IDLE_SECONDS)
        await self.asleep()
        await self.sleeps_after(NEVER_SECONDS)

    async def wake_and_fall_asleep(self) -> None:
        await self.sleeps_after(NEVER_SECONDS)
        session = await asyncpg.connect(self.reader, timeout=PATIENCE_SECONDS)
        await session.close()
        await self.fall_asleep()

    async def asleep(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.state() != "sleeping":
                await asyncio.sleep(0.02)
        assert self.pid is None

    async def state(self) -> str:
        return str(
            await self.sql(
                "SELECT state FROM resources WHERE deployment_id = $1 AND kind = 'database'",
                self.deployment_id,
            )
        )

    async def sql(self, statement: str, *params: Any) -> Any:
        settings = self.mesh.settings["provisioner"]
        assert isinstance(settings, Settings)
        connection = await connect(settings)
        try:
            await connection.execute("SET ROLE provisioner_service")
            return await connection.fetchval(statement, *params)
        finally:
            await connection.close()

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[mcp.Client]:
        """An agent at the deployment's own door."""
        key = await self.mesh.key(self.owner, self.deployment_id)
        settings: Any = self.mesh.settings["app_proxy"]
        files = self.mesh.pki["edge"]
        tls = ssl.create_default_context(cafile=str(files.authority))
        tls.check_hostname = False
        tls.load_cert_chain(files.certificate, files.key)
        base = f"https://{settings.http_listen}"
        headers = {"host": self.host, "authorization": f"Bearer {key.key}"}
        async with (
            httpx2.AsyncClient(base_url=base, verify=tls, headers=headers, timeout=30) as client,
            mcp.Client(streamable_http_client(f"{base}/mcp", http_client=client)) as agent,
        ):
            yield agent


async def a_bed(mesh: Mesh) -> Bed:
    owner = await mesh.customer()
    made = await mesh.deployment(owner)
    writer, reader = [
        await given(mesh, owner, made.deployment_id, role)
        for role in (pb2.DATABASE_ROLE_WRITER, pb2.DATABASE_ROLE_READER)
    ]
    assert writer.port == reader.port
    bed = Bed(mesh, owner, made.deployment_id, made.host, reader.uri, writer.uri, writer.port)
    await bed.sleeps_after(NEVER_SECONDS)
    return bed


async def given(
    mesh: Mesh, owner: Customer, deployment_id: str, role: "pb2.DatabaseRole.ValueType"
) -> pb2.GetDatabaseConnectionResponse:
    return await mesh.stub(ProvisionerServiceStub, "provisioner").GetDatabaseConnection(
        pb2.GetDatabaseConnectionRequest(deployment_id=deployment_id, role=role),
        metadata=bearer(owner.key),
        timeout=PATIENCE_SECONDS,
    )


async def psql(uri: str, *arguments: str, text: bytes = b"") -> tuple[int, str, str]:
    """Returns how the real psql ended, and what it said."""
    process = await asyncio.create_subprocess_exec(
        *(str(postgres_process.binaries() / "psql"), "-XqAt", uri, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"LC_ALL": "C.UTF-8", "PATH": os.defpath},
    )
    said, complained = await process.communicate(text)
    assert process.returncode is not None
    return process.returncode, said.decode(), complained.decode()
