"""Which driver makes the databases of this provisioner, by its settings."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.provisioner import store
from services.provisioner.drivers.claim import claim
from services.provisioner.drivers.cnpg import CnpgDriver
from services.provisioner.drivers.cnpg_clusters import Clusters
from services.provisioner.drivers.cnpg_connection import open_api
from services.provisioner.drivers.cnpg_login import Logins
from services.provisioner.drivers.cnpg_objects import Shape
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
    async with open_api(settings.cnpg_kubeconfig_file) as api:
        shape = shape_of(settings, mark)
        clusters = Clusters(api, shape, settings.cnpg_patience_seconds)
        yield CnpgDriver(clusters, Logins(api, shape, secret))


def shape_of(settings: Settings, mark: str) -> Shape:
    """Returns how the settings want Clusters to be; `mark` is the installation's."""
    return Shape(
        installation=mark,
        image=settings.cnpg_image,
        storage_class=settings.cnpg_storage_class or None,
        instances=settings.cnpg_instances,
        cpu=settings.cnpg_cpu,
        memory=settings.cnpg_memory,
        mesh=settings.cnpg_mesh_namespace,
        operator=settings.cnpg_operator_namespace,
        api_cidr=settings.cnpg_api_cidr,
        encrypted=True,
        statement_timeout_ms=_milliseconds(settings),
    )


def _local_driver(settings: Settings, secret: MasterSecret, mark: str) -> LocalDriver:
    home = reachable_home(settings.servers_home)
    claim(home, mark)
    ports = PortRange(settings.database_port_first, settings.database_port_last)
    return LocalDriver(home, secret, ports, _milliseconds(settings))


def _milliseconds(settings: Settings) -> int:
    return round(settings.statement_timeout_seconds * 1000)
