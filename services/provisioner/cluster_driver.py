"""The driver of databases on a cluster, by the settings: `cnpg`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.provisioner.drivers.cnpg import CnpgDriver
from services.provisioner.drivers.cnpg_clusters import Clusters
from services.provisioner.drivers.cnpg_connection import open_api
from services.provisioner.drivers.cnpg_login import Logins
from services.provisioner.drivers.cnpg_objects import Shape
from services.provisioner.master_secret import MasterSecret
from services.provisioner.settings import Settings


@asynccontextmanager
async def open_cluster_driver(
    settings: Settings, secret: MasterSecret, mark: str
) -> AsyncIterator[CnpgDriver]:
    """Yields the driver, its connections ended after; `mark` is the installation's.

    Raises:
        UnusableFileError: the cluster's API cannot be reached by what was given.
    """
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
        statement_timeout_ms=round(settings.statement_timeout_seconds * 1000),
    )
