"""The Postgres servers of deployments, seen from outside: who runs, and ending them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deploy.local.layout import Layout
from services.provisioner.drivers import guard, postgres_process


@dataclass(frozen=True, slots=True)
class DeploymentServer:
    """A running server of one deployment."""

    deployment_id: str
    data_directory: str
    port: int
    pid: int


def deployment_servers(layout: Layout) -> list[DeploymentServer]:
    """Returns the servers that run now."""
    return [
        DeploymentServer(directory.name, str(directory), server.port, server.pid)
        for directory in _directories(layout)
        if (server := postgres_process.running(directory)) is not None
    ]


async def stop_deployment_servers(layout: Layout) -> None:
    """Ends every server of a deployment, and the guard beside it; their data stays."""
    for directory in _directories(layout):
        guard.end(directory)
        await postgres_process.stop(directory)


def _directories(layout: Layout) -> Iterator[Path]:
    """Every data directory; it has the name of its deployment."""
    yield from sorted(path.parent for path in layout.servers.glob("dep_*/PG_VERSION"))
