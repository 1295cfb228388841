"""How limits stand, as a client reads it through a real Envoy before real services."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import http_sf
import httpx
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit_pb2
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub

from deploy.envoy.settings import Address, EdgeSettings, Identity
from deploy.local.envoy import front_door
from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK, free_ports
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.local import remove_home
from tests.conftest import StartMesh
from tests.mesh import Customer, Mesh, bearer

Item = dict[str, int]


@dataclass(frozen=True)
class House:
    """A mesh behind its front door, whose free plan is small enough to use up."""

    mesh: Mesh
    url: str

    async def home(self, customer: Customer) -> "Home":
        made = await self.mesh.deployment(customer)
        issued = await self.mesh.key(customer, made.deployment_id)
        return Home(self, customer, made.deployment_id, made.host, issued.key)


@dataclass(frozen=True)
class Home:
    house: House
    customer: Customer
    deployment_id: str
    host: str
    key: str

    async def get(self, key: str | None = None) -> httpx.Response:
        headers = {"host": self.host, "authorization": f"Bearer {key or self.key}"}
        async with httpx.AsyncClient(base_url=self.house.url, timeout=30) as client:
            return await client.get("/manifest.json", headers=headers)

    async def used(self) -> int:
        stub = self.house.mesh.stub(RatelimitServiceStub, "ratelimit")
        usage = await stub.GetUsage(
            ratelimit_pb2.GetUsageRequest(deployment_id=self.deployment_id),
            metadata=bearer(self.customer.key),
        )
        return usage.used


@pytest.fixture(scope="module")
async def mesh_and_http(start_mesh: StartMesh) -> AsyncIterator[tuple[Mesh, int]]:
    (http,) = free_ports(1)
    own = {
        "app_proxy": {"http_listen": f"{LOOPBACK}:{http}"},
        # A burst comes back over minutes, so that no slow machine sees it come back.
        "ratelimit": {
            "rate_free": 1,
            "burst_free": 300,
            "quota_free": 3,
            "rate_pro": 1,
            "burst_pro": 1,
        },
    }
    async with start_mesh(own) as mesh:
        yield mesh, http
        await remove_home(postgres_process.reachable_home(mesh.home))


@pytest.fixture(scope="module")
async def house(
    mesh_and_http: tuple[Mesh, int], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[House]:
    async with front(*mesh_and_http, tmp_path_factory.mktemp("edge")) as house:
        yield house


@asynccontextmanager
async def front(mesh: Mesh, http: int, home: Path) -> AsyncIterator[House]:
    """Runs a front door that forwards to the port `http`."""
    files = mesh.pki["edge"]
    listen, admin = free_ports(2)
    settings = EdgeSettings(
        listen=Address(LOOPBACK, listen),
        admin=Address(LOOPBACK, admin),
        app_proxy_http=Address(LOOPBACK, http),
        services={name: Address(LOOPBACK, port) for name, port in mesh.ports.items()},
        identity=Identity(files.certificate, files.key, files.authority),
        access_log=home / "access.log",
    )
    async with front_door(home, settings):
        yield House(mesh, f"http://{LOOPBACK}:{listen}")


@asynccontextmanager
async def boastful(files: Paths) -> AsyncIterator[int]:
    """Serves a deployment that names limits of its own; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\nx-own: kept\r\n"
                b'RateLimit: "own";r=9999\r\nratelimit: "more";r=9999\r\n'
                b'RateLimit-Policy: "own";q=9999\r\n\r\n'
            )
            await writer.drain()

    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=files.authority)
    tls.load_cert_chain(files.certificate, files.key)
    server = await asyncio.start_server(serve, LOOPBACK, 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]


def fields(response: httpx.Response) -> tuple[dict[str, Item], dict[str, Item]]:
    policies: Any = http_sf.parse(response.headers["ratelimit-policy"].encode(), tltype="list")
    limits: Any = http_sf.parse(response.headers["ratelimit"].encode(), tltype="list")
    return dict(policies), dict(limits)


@pytest.mark.promise("P-05")
async def test_answers_tell_how_the_limits_stand_until_one_is_used_up(house: House) -> None:
    home = await house.home(await house.mesh.customer(auth_pb2.PLAN_FREE))
    admitted = [await home.get() for _ in range(3)]
    for number, response in enumerate(admitted, 1):
        policies, limits = fields(response)
        assert policies["burst"] == {"q": 300, "w": 300}
        assert policies["month"]["q"] == 3
        assert policies["month"]["w"] in {days * 86_400 for days in (28, 29, 30, 31)}
        assert limits["month"]["r"] == 3 - number
        assert limits["burst"]["r"] >= 300 - number
        assert 0 < limits["month"]["t"] <= policies["month"]["w"]
        assert response.status_code == 200
        assert "retry-after" not in response.headers
    refused = await home.get()
    assert refused.status_code == 429
    assert refused.headers["content-type"] == "application/problem+json"
    _, limits = fields(refused)
    assert limits["month"] == {"r": 0, "t": int(refused.headers["retry-after"])}
    assert await home.used() == 3


@pytest.mark.promise("P-05")
async def test_waiting_as_long_as_both_fields_say_is_enough(house: House) -> None:
    home = await house.home(await house.mesh.customer(auth_pb2.PLAN_PRO))
    async with asyncio.timeout(30):
        # Two at once, until one is refused: the burst is of one call.
        while not (over := [each for each in await both(home) if each.status_code == 429]):
            pass
    (_, limits), wait = fields(over[0]), int(over[0].headers["retry-after"])
    assert limits == {"burst": {"r": 0, "t": wait}}
    await asyncio.sleep(wait)
    assert (await home.get()).status_code == 200


async def both(home: Home) -> list[httpx.Response]:
    return list(await asyncio.gather(home.get(), home.get()))


@pytest.mark.promise("P-41")
async def test_who_may_not_enter_learns_nothing_of_the_limits(house: House) -> None:
    owner = await house.mesh.customer(auth_pb2.PLAN_FREE)
    mine, theirs = await house.home(owner), await house.home(await house.mesh.customer())
    for key in (theirs.key, owner.key, "garbage"):
        response = await mine.get(key)
        assert response.status_code == 401
        assert not {"ratelimit", "ratelimit-policy"} & response.headers.keys()
    assert await mine.used() == 0


async def test_a_deployment_cannot_speak_of_limits_in_the_doors_name(
    mesh_and_http: tuple[Mesh, int], tmp_path: Path
) -> None:
    mesh, _ = mesh_and_http
    async with boastful(mesh.pki["app_proxy"]) as port, front(mesh, port, tmp_path) as house:
        home = await house.home(await mesh.customer(auth_pb2.PLAN_FREE))
        response = await home.get()
    assert response.headers["x-own"] == "kept"
    policies, limits = fields(response)
    assert policies.keys() == limits.keys() == {"burst", "month"}
