"""Two replicas of each service as processes, behind one Envoy; and how they are restarted."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc

from deploy.envoy.clusters import APP_PROXY_HTTP
from deploy.envoy.settings import Address, EdgeSettings
from deploy.envoy.settings import Identity as EdgeIdentity
from deploy.local.envoy import front_door
from deploy.local.files import write_private
from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.valkey import ValkeyServer
from services.provisioner.drivers.local import remove_home
from services.provisioner.drivers.postgres_process import reachable_home
from services.shared.channel import open_channel
from services.shared.keyformat import new_key
from services.shared.principal import KeyKind
from tests.connections_seen import Who, callers_of
from tests.databases import Databases
from tests.processes import PATIENCE_SECONDS, ServiceProcess

ALL = ("auth", "ratelimit", "credentials", "provisioner", "app_proxy")
_WITH_VALKEY = ("ratelimit", "app_proxy")
REPLICAS = 2
# Longer than Envoy's interval between two looks at a replica's health.
_DRAIN_SECONDS = 1.0
# A machine that stalls is no check that hangs.
_PATIENT_CHECK = timedelta(seconds=30)
# Beside what is called by a service's name.
_HEALTH, _EDGE, _ADMIN = "health of ", "edge", "admin"


@dataclass(frozen=True)
class Fleet:
    """The replicas by service, the front door, and the way to call them."""

    home: Path
    pki: Mapping[str, Paths]
    replicas: Mapping[str, list[ServiceProcess]]
    edge: EdgeSettings
    operator_key: str
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    @property
    def every(self) -> Iterator[ServiceProcess]:
        """All replicas, the first of each service first."""
        for each in zip(*self.replicas.values(), strict=True):
            yield from each

    async def restart(self, replica: ServiceProcess) -> None:
        """Ends it and starts it again; returns when all who called it are connected to it anew."""
        before = self._callers(replica)
        assert await replica.end() == 0, replica.last_words
        await replica.start()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not before <= self._callers(replica):
                await asyncio.sleep(0.3)

    def _callers(self, replica: ServiceProcess) -> set[tuple[int, Who]]:
        """Returns who is connected to which of its ports."""
        known = {each.pid for each in self.every if each.process is not None} | {os.getpid()}
        return {
            (port, who) for port in replica.ports for who in callers_of(port, known - {replica.pid})
        }

    async def channel(self, service: str, peer: str) -> grpc.aio.Channel:
        """Returns the channel that the service `peer` has to `service`."""
        settings = self.replicas[peer][0].settings
        target: str = getattr(settings, f"{service}_target")
        return await self._stack.enter_async_context(open_channel(settings, service, target))

    def through_the_door(self) -> grpc.aio.Channel:
        """Returns a plain channel to the API, which repeats nothing."""
        return grpc.aio.insecure_channel(str(self.edge.listen), [("grpc.enable_retries", 0)])


@asynccontextmanager
async def running_fleet(
    home: Path, databases: Databases, valkey: ValkeyServer, pki: Mapping[str, Paths]
) -> AsyncIterator[Fleet]:
    """Yields a fleet, every replica of it serving, over databases of its own."""
    own_home = home / f"fleet-{secrets.token_hex(4)}"
    own_home.mkdir()
    operator_key = new_key(KeyKind.OPERATOR)
    ports = _ports()
    common = _common(own_home, operator_key, ports)
    replicas = {
        service: await _replicas(service, common, own_home, databases, valkey, pki[service], ports)
        for service in ALL
    }
    fleet = Fleet(own_home, pki, replicas, _edge(own_home, pki["edge"], ports), operator_key)
    try:
        # The first of each alone: both would make the files of a new installation.
        for each in zip(*replicas.values(), strict=True):
            await asyncio.gather(*(replica.start() for replica in each))
        async with fleet._stack, front_door(own_home, fleet.edge):  # noqa: SLF001 its own module
            yield fleet
    finally:
        await asyncio.gather(*(replica.end() for replica in fleet.every))
        await remove_home(reachable_home(own_home))


def _ports() -> dict[str, list[int]]:
    """Returns the ports of each kind, one for each replica."""
    names = [*ALL, APP_PROXY_HTTP, _EDGE, _ADMIN, *(_HEALTH + service for service in ALL)]
    picked = iter(free_ports(REPLICAS * len(names)))
    return {name: [next(picked) for _ in range(REPLICAS)] for name in names}


async def _replicas(
    service: str,
    common: Mapping[str, Any],
    home: Path,
    databases: Databases,
    valkey: ValkeyServer,
    paths: Paths,
    ports: Mapping[str, list[int]],
) -> list[ServiceProcess]:
    settings_type = import_module(f"services.{service}.settings").Settings
    values = dict(common) | (await databases.fresh(service)).model_dump() | _identity(paths)
    values |= _valkey(valkey, service) if service in _WITH_VALKEY else {}
    values["keyring_file"] = home / f"{service}-keyring"
    made = []
    for number, port in enumerate(ports[service]):
        health = ports[_HEALTH + service][number]
        own = {"listen": f"{LOOPBACK}:{port}", "health_listen": f"{LOOPBACK}:{health}"}
        if service == "app_proxy":
            own["http_listen"] = f"{LOOPBACK}:{ports[APP_PROXY_HTTP][number]}"
        log = home / f"{service}-{number}.log"
        made.append(ServiceProcess(service, settings_type(**(values | own)), log))
    return made


def _common(home: Path, operator_key: str, ports: Mapping[str, list[int]]) -> dict[str, Any]:
    targets = {
        f"{service}_target": "ipv4:" + ",".join(f"{LOOPBACK}:{port}" for port in ports[service])
        for service in ALL
    }
    return targets | {
        "drain_seconds": _DRAIN_SECONDS,
        "pepper_file": write_private(home / "pepper", secrets.token_hex(32)),
        "bootstrap_operator_key_file": write_private(home / "operator.key", operator_key),
        "certificate_key_file": home / "certificate-key.pem",
        "database_secret_file": write_private(home / "database.secret", secrets.token_hex(32)),
        "servers_home": home,
        "backups_home": home / "backups",
        # A machine that stalls is no store that is away.
        "valkey_patience_seconds": PATIENCE_SECONDS,
        "month_patience_seconds": PATIENCE_SECONDS,
        "valkey_timeout_seconds": PATIENCE_SECONDS,
        "limit_patience_seconds": PATIENCE_SECONDS,
    }


def _identity(paths: Paths) -> dict[str, Any]:
    return {
        "tls_cert_file": paths.certificate,
        "tls_key_file": paths.key,
        "tls_ca_file": paths.authority,
    }


def _valkey(server: ValkeyServer, service: str) -> dict[str, Any]:
    return {
        "valkey_host": server.host,
        "valkey_port": server.port,
        "valkey_user": service,
        "valkey_password_file": server.password_files[service],
    }


def _edge(home: Path, paths: Paths, ports: Mapping[str, list[int]]) -> EdgeSettings:
    endpoints = {
        name: [Address(LOOPBACK, port) for port in listed] for name, listed in ports.items()
    }
    return EdgeSettings(
        listen=endpoints[_EDGE][0],
        admin=endpoints[_ADMIN][0],
        identity=EdgeIdentity(paths.certificate, paths.key, paths.authority),
        services={service: endpoints[service][0] for service in ALL},
        app_proxy_http=endpoints[APP_PROXY_HTTP][0],
        further={name: endpoints[name][1:] for name in (*ALL, APP_PROXY_HTTP)},
        access_log=home / "access.log",
        check_timeout=_PATIENT_CHECK,
    )
