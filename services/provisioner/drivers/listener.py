"""Listens on each database's public port, awake or not, and relays to its server (P-12).

Whoever connects says first who they are and what they want. Only one who names the database and a
login of it wakes its server; a scan of ports does not, nor does whoever says nothing.
"""

import resource
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from services.provisioner.drivers import port_range
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.public_port import PublicPort
from services.provisioner.drivers.reception import House, Reception, Waker
from services.shared.ids import DeploymentId

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Place:
    """On which of this machine's addresses is listened, and by which one others are told."""

    bound: str = HOST
    told: str = HOST


class Listeners:
    """The public ports of all databases that this process listens for."""

    def __init__(self, reception: Reception, ports: PortRange, place: Place) -> None:
        self.host = place.told
        self._reception = reception
        self._ports = ports
        self._bound_host = place.bound
        self._open: dict[DeploymentId, PublicPort] = {}

    async def open(self, deployment: DeploymentId, port: int | None) -> int | None:
        """Returns the port of the database; see `protocol.DatabaseListeners`."""
        opened = self._open.get(deployment)
        if opened is not None and port in (None, opened.number):
            return opened.number
        bound = self._bind(port)
        if bound is None:
            return None
        await self.close(deployment)
        opened = self._open[deployment] = PublicPort(self._reception, deployment, bound)
        await opened.start()
        return opened.number

    async def close(self, deployment: DeploymentId) -> None:
        """Listens for the deployment no more, and cuts off whoever came that way."""
        opened = self._open.pop(deployment, None)
        if opened is not None:
            await opened.stop()

    @property
    def opened(self) -> frozenset[DeploymentId]:
        """Whom this process listens for."""
        return frozenset(self._open)

    def _bind(self, port: int | None) -> socket.socket | None:
        if port is None:
            return self._ports.bind(self._bound_host)
        return port_range.bind(self._bound_host, port)


@asynccontextmanager
async def open_listeners(
    waker: Waker, house: House, ports: PortRange, place: Place = Place()
) -> AsyncIterator[Listeners]:
    """Yields listeners that listen for nobody yet; at the end all of them are closed."""
    _allow_files()
    listeners = Listeners(Reception(waker, house), ports, place)
    try:
        yield listeners
    finally:
        for deployment in listeners.opened:
            await listeners.close(deployment)


def _allow_files() -> None:
    """Lets this process have as many sockets open as it may at all."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
