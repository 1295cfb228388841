"""Which driver makes the databases of this provisioner, by its settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.provisioner import store
from services.provisioner.drivers.claim import claim
from services.provisioner.drivers.local import LocalDriver
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.postgres_process import reachable_home
from services.provisioner.drivers.protocol import DatabaseDriver
from services.provisioner.master_secret import MasterSecret
from services.provisioner.settings import DriverName, Settings
from services.shared.postgres import Database


@asynccontextmanager
async def open_database_driver(
    settings: Settings, secret: MasterSecret, database: Database
) -> AsyncIterator[DatabaseDriver]:
    """Yields the driver, its connections ended after.

    Raises:
        ServerError: the local servers are another installation's.
        UnusableFileError: the cluster's API cannot be reached by what was given.
    """
    async with database.service() as connection:
        mark = await store.installation_mark(connection)
    if settings.database_driver is DriverName.LOCAL:
        yield _local_driver(settings, secret, mark)
        return
    # Not before it is wanted: the client of Kubernetes' API weighs 35 MB, and takes a second.
    from services.provisioner.cluster_driver import open_cluster_driver  # noqa: PLC0415

    async with open_cluster_driver(settings, secret, mark) as driver:
        yield driver


def _local_driver(settings: Settings, secret: MasterSecret, mark: str) -> LocalDriver:
    home = reachable_home(settings.servers_home)
    claim(home, mark)
    ports = PortRange(settings.database_port_first, settings.database_port_last)
    return LocalDriver(home, secret, ports, _milliseconds(settings))


def _milliseconds(settings: Settings) -> int:
    return round(settings.statement_timeout_seconds * 1000)
