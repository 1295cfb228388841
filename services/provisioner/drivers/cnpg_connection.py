"""The way to the cluster's API: the pod's own, or what a kubeconfig file says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kubernetes_asyncio.client import ApiClient, Configuration
from kubernetes_asyncio.config import ConfigException, load_incluster_config, load_kube_config

from services.provisioner.drivers.cnpg_api import KubernetesApi
from services.shared.settings import UnusableFileError

# So many requests at once; the others wait for a connection.
_CONNECTIONS = 32


@asynccontextmanager
async def open_api(kubeconfig: Path | None) -> AsyncIterator[KubernetesApi]:
    """Yields the cluster's API; without a file by what Kubernetes gives to every pod.

    Raises:
        UnusableFileError: the file cannot be used, or this is no pod.
    """
    configuration = Configuration()
    try:
        if kubeconfig is None:
            load_incluster_config(client_configuration=configuration)
        else:
            await load_kube_config(str(kubeconfig), client_configuration=configuration)
    except (ConfigException, OSError) as error:
        raise UnusableFileError(f"{kubeconfig or 'the token of the pod'}: {error}") from error
    configuration.connection_pool_maxsize = _CONNECTIONS
    async with ApiClient(configuration) as client:
        yield KubernetesApi(client)
