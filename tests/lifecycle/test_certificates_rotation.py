"""Certificates of a whole mesh and of its front door change under load, and nobody notices."""

from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from structlog.testing import capture_logs

from deploy.envoy.settings import Address, EdgeSettings, Identity
from deploy.local.envoy import front_door
from deploy.local.pki import Paths, certificates, forget, reissue, succeed
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.valkey import ValkeyServer
from tests.conftest import SERVICES
from tests.databases import Databases
from tests.lifecycle.envoy_doubles import settings_of
from tests.mesh import Mesh, bearer, running_mesh
from tests.renewals import (
    LOOK_SECONDS,
    Beholder,
    beheld,
    constant,
    identity_in,
    serial_at,
    serial_in,
    until,
    until_so,
)

RUNNING = ("auth", "ratelimit", "provisioner", "app_proxy")
RENEWED = "certificate renewed"
Logs = Sequence[MutableMapping[str, Any]]


@dataclass(frozen=True)
class Door:
    """A mesh behind its front door, with certificates of its own."""

    mesh: Mesh
    settings: EdgeSettings
    logs: Logs

    @property
    def edge(self) -> Paths:
        return self.mesh.pki["edge"]

    @property
    def folder(self) -> Path:
        return self.edge.key.parent

    @property
    def renewals(self) -> int:
        return len([line for line in self.logs if line["event"] == RENEWED])

    async def change(self, change: Any) -> None:
        """Changes files, and waits until everybody uses what is in them now."""
        everybody = self.renewals + len(RUNNING)
        change(self.folder)
        await until(lambda: self.renewals >= everybody)
        await until_so(self._envoy_uses_them)
        await until_so(self._services_show_them)

    async def _envoy_uses_them(self) -> bool:
        async with httpx.AsyncClient(base_url=f"http://{self.settings.admin}") as client:
            used = (await client.get("/certs")).json()["certificates"]
        believed = self.edge.authority.read_text().count("BEGIN CERTIFICATE")
        return all(
            [int(shown["serial_number"], 16) for shown in each["cert_chain"]]
            == [serial_in(self.edge)]
            and len(each["ca_cert"]) == believed
            for each in used
        )

    async def _services_show_them(self) -> bool:
        grpc_ports = [(self.mesh.ports[name], name, "h2") for name in RUNNING]
        http = (self.settings.app_proxy_http.port, "app_proxy", "http/1.1")
        return all(
            [
                await serial_at(port, self.edge, protocol) == serial_in(self.mesh.pki[name])
                for port, name, protocol in [*grpc_ports, http]
            ]
        )


@pytest.fixture
async def door(
    home: Path, databases: Databases, valkey: ValkeyServer, tmp_path: Path
) -> AsyncIterator[Door]:
    pki = certificates(tmp_path / "pki", SERVICES)
    listen, admin, http = (Address(LOOPBACK, port) for port in free_ports(3))
    often: dict[str, Any] = {"tls_reload_seconds": LOOK_SECONDS}
    own = {name: dict(often) for name in RUNNING}
    own["app_proxy"]["http_listen"] = str(http)
    with capture_logs() as logs:
        async with running_mesh(home, databases, valkey, pki, own, RUNNING) as mesh:
            settings = EdgeSettings(
                listen=listen,
                admin=admin,
                app_proxy_http=http,
                services={name: Address(LOOPBACK, port) for name, port in mesh.ports.items()},
                identity=Identity(pki["edge"].certificate, pki["edge"].key, pki["edge"].authority),
                access_log=tmp_path / "access.log",
                # A loaded machine takes its time; no answer of it is to be a refusal.
                check_timeout=timedelta(seconds=30),
            )
            async with front_door(tmp_path / "edge", settings):
                yield Door(mesh, settings, logs)


@asynccontextmanager
async def load(door: Door) -> AsyncIterator[None]:
    """Asks by both faces of the door all the time; every answer must be the right one."""
    customer = await door.mesh.customer(auth_pb2.PLAN_SCALE)
    made = await door.mesh.deployment(customer, database=False, mcp=False)
    key = (await door.mesh.key(customer, made.deployment_id)).key
    headers = {"host": made.host, "authorization": f"Bearer {key}"}
    async with (
        grpc.aio.insecure_channel(str(door.settings.listen)) as channel,
        httpx.AsyncClient(base_url=f"http://{door.settings.listen}", headers=headers) as client,
    ):
        auth: Any = AuthServiceStub(channel)

        async def api() -> None:
            await auth.GetTenant(auth_pb2.GetTenantRequest(), metadata=bearer(customer.key))

        async def deployment() -> None:
            # Checked, counted by ratelimit, and answered by app_proxy.
            answer = await client.get("/nothing-is-here", timeout=30)
            assert (answer.status_code, answer.headers.get("server")) == (404, "bulkhead")
            assert "ratelimit" in answer.headers

        async with constant(api, callers=1) as some, constant(deployment, callers=1) as others:
            yield
            await some.more()
            await others.more()


async def test_nothing_fails_while_every_certificate_and_the_authority_change(door: Door) -> None:
    async with load(door):
        for change in (
            partial(reissue, services=SERVICES),
            succeed,
            partial(reissue, services=SERVICES),
            forget,
        ):
            await door.change(change)
    assert not [
        line
        for line in door.logs
        if "certificate" in line["event"] and line["log_level"] == "warning"
    ]


async def test_the_front_door_presents_its_new_certificate(tmp_path: Path) -> None:
    pki = certificates(tmp_path / "pki", SERVICES)
    beholder, auth = Beholder(), identity_in(pki["auth"])
    # Connections end soon, so that new ones are made all the time.
    async with beheld(lambda: auth, beholder, **{"grpc.max_connection_age_ms": 300}) as port:
        settings = settings_of(pki, tmp_path)
        services = {**settings.services, "auth": Address(LOOPBACK, port)}
        async with (
            front_door(tmp_path, replace(settings, services=services)),
            grpc.aio.insecure_channel(str(settings.listen)) as channel,
        ):
            call: Any = channel.unary_unary("/bulkhead.auth.v1.AuthService/GetTenant")
            async with constant(lambda: call(b""), callers=2) as calls:
                for _ in range(2):
                    reissue(tmp_path / "pki", ["edge"])
                    await until(lambda: beholder.serials[-1] == serial_in(pki["edge"]))
                    await calls.more()
    assert len(set(beholder.serials)) == 3
