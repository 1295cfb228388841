"""The `cnpg` driver as tests have it: at a double of a cluster."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from services.provisioner.drivers.cnpg import CnpgDriver
from services.provisioner.drivers.cnpg_api import KubernetesApi
from services.provisioner.drivers.cnpg_clusters import Clusters
from services.provisioner.drivers.cnpg_connection import open_api
from services.provisioner.drivers.cnpg_login import Logins
from services.provisioner.drivers.cnpg_objects import Shape, annotations, namespace_name
from services.provisioner.drivers.postgres_process import reachable_home
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId
from tests.kubernetes_double import ApiDouble, serve
from tests.kubernetes_double_operator import OperatorDouble, operating
from tests.kubernetes_double_store import Key, Object

_PATIENCE_SECONDS = 30.0
TOKEN = "a token that guards nothing at all"
SHAPE = Shape(
    installation="an-installation",
    image="postgres",
    storage_class="fast",
    instances=1,
    cpu="1",
    memory="512Mi",
    mesh="bulkhead",
    operator="cnpg-system",
    api_cidr="10.0.0.1/32",
    encrypted=True,
    statement_timeout_ms=30_000,
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A double of a cluster, and a driver at it."""

    api: ApiDouble
    operator: OperatorDouble
    url: str
    client: KubernetesApi
    logins: Logins
    driver: CnpgDriver

    def found(self, deployment: DeploymentId, plural: str, name: str) -> Object | None:
        """Returns an object of the deployment's namespace, as the API has it."""
        return self.api.store.objects.get(Key(plural, namespace_name(deployment), name))

    def notes(self, deployment: DeploymentId) -> Mapping[str, str]:
        """Returns what is written on the deployment's Cluster."""
        made = self.found(deployment, "clusters", "database")
        return annotations(made) if made else {}


async def eventually(met: Callable[[], bool]) -> None:
    """Returns once it is so."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not met():
            await asyncio.sleep(0.02)


@asynccontextmanager
async def open_cluster(
    folder: Path, *, finalizing_seconds: float = 0.1, patience: float = 30.0
) -> AsyncIterator[Cluster]:
    """Yields a double of a cluster with nothing in it; the driver comes by a kubeconfig file."""
    async with AsyncExitStack() as stack:
        api = ApiDouble(TOKEN)
        home = reachable_home(folder)
        operator = await stack.enter_async_context(operating(api, home, finalizing_seconds))
        url = await stack.enter_async_context(serve(api))
        file = kubeconfig(folder / "kubeconfig", url, TOKEN)
        client = await stack.enter_async_context(open_api(file))
        logins = Logins(
            client, SHAPE, MasterSecret(b"a secret that guards nothing"), operator.address
        )
        driver = CnpgDriver(Clusters(client, SHAPE, patience), logins)
        yield Cluster(api, operator, url, client, logins, driver)


def kubeconfig(file: Path, url: str, token: str) -> Path:
    """Returns a file that says where the API is, and by which token."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "us"}}],
        "clusters": [{"name": "here", "cluster": {"server": url}}],
        "users": [{"name": "us", "user": {"token": token}}],
    }
    file.write_text(json.dumps(content))
    return file
