"""The `cnpg` driver and the API of a cluster: its faults, and what the driver may do there."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from services.provisioner import store
from services.provisioner.database_drivers import open_database_driver
from services.provisioner.domain import DeploymentState, Wanted
from services.provisioner.drivers import cnpg_objects as objects
from services.provisioner.drivers.cnpg import CnpgDriver
from services.provisioner.drivers.cnpg_api import CLUSTER, POD, ApiError
from services.provisioner.drivers.cnpg_connection import open_api
from services.provisioner.drivers.cnpg_objects import namespace_name
from services.provisioner.drivers.cnpg_watch import until
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.locks import DeploymentLocks
from services.provisioner.master_secret import MasterSecret
from services.provisioner.settings import Settings
from services.provisioner.uses import Uses
from services.provisioner.waking import Waking
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, new_deployment_id, new_operation_id, new_tenant_id
from services.shared.postgres import open_database
from services.shared.settings import UnusableFileError
from tests.cnpg_drivers import TOKEN, Cluster, eventually, kubeconfig, open_cluster
from tests.databases import SERVICES, Databases
from tests.kubernetes_double_store import Key, Object
from tests.local_databases import wanted

RBAC = Path(__file__).parents[2] / "deploy/kubernetes/base/provisioner/rbac.yaml"
PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    async with open_cluster(tmp_path_factory.mktemp("cluster")) as opened:
        yield opened


@pytest.fixture
async def deployment(cluster: Cluster) -> AsyncIterator[DeploymentId]:
    fresh = new_deployment_id()
    yield fresh
    await cluster.driver.destroy(fresh)


@pytest.fixture
async def other(cluster: Cluster) -> AsyncIterator[DeploymentId]:
    fresh = new_deployment_id()
    yield fresh
    await cluster.driver.destroy(fresh)


async def test_conflicts_a_busy_api_and_lost_answers_are_outlasted(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    faults = [
        cluster.api.fault(lambda method, kind: (method, kind) == ("PATCH", "clusters"), 409),
        cluster.api.fault(lambda method, _: method == "PATCH", 429, times=3, retry_after="0"),
        cluster.api.fault(lambda _, kind: kind == "secrets", 503, times=2),
        cluster.api.fault(lambda _, kind: kind == "namespaces", 500, done=True),
        cluster.api.fault(lambda _, kind: kind == "deployments", 504, done=True),
    ]
    address = await cluster.driver.ensure(wanted(deployment))
    assert [fault.seen for fault in faults] == [fault.times for fault in faults]
    assert await cluster.driver.exists(deployment) == address


async def test_an_api_that_asks_for_a_pause_gets_it(cluster: Cluster) -> None:
    cluster.api.fault(lambda _, kind: kind == "pods", 429, retry_after="0.4")
    begun = time.monotonic()
    assert await cluster.client.list(POD, "nowhere") == []
    assert time.monotonic() - begun >= 0.4


async def test_a_refusal_is_not_repeated_and_a_foreign_token_opens_nothing(
    cluster: Cluster, tmp_path: Path
) -> None:
    denied = cluster.api.fault(lambda _, kind: kind == "namespaces", 403, times=2)
    with pytest.raises(DriverError):
        await cluster.driver.found()
    assert denied.seen == 1
    cluster.api.faults.clear()
    file = kubeconfig(tmp_path / "config", cluster.url, "another token")
    async with open_api(file) as stranger:
        with pytest.raises(ApiError) as error:
            await stranger.get(CLUSTER, "database", "nowhere")
    assert error.value.status == 401
    with pytest.raises(UnusableFileError):
        async with open_api(tmp_path / "missing"):
            pass


async def test_settings_choose_the_driver_and_an_api_that_is_away_is_no_database_yet(
    cluster: Cluster, databases: Databases, tmp_path: Path
) -> None:
    file = kubeconfig(tmp_path / "config", cluster.url, TOKEN)
    chosen = {"database_driver": "cnpg", "cnpg_kubeconfig_file": file}
    settings = Settings(**((await databases.fresh("provisioner")).model_dump() | chosen))
    folder = SERVICES / "provisioner" / "migrations"
    async with (
        open_database(settings, "provisioner", folder) as database,
        open_database_driver(settings, MasterSecret(b"guards nothing"), database) as driver,
    ):
        assert isinstance(driver, CnpgDriver)
        # Another installation's are none of its own.
        assert await driver.found() == []
        waking = Waking(database, DeploymentLocks(database, for_calls=1), driver, Uses())
        asked = Wanted(new_operation_id(), "n", mcp=False, database=True)
        async with database.service() as connection:
            deployment = await store.insert_deployment(
                connection, new_tenant_id(), new_deployment_id(), "n.localhost", asked
            )
            await store.set_state(connection, deployment.deployment_id, DeploymentState.READY)
        denied = cluster.api.fault(lambda *_: True, 403)
        with pytest.raises(UnavailableError):
            await waking.wake(deployment.deployment_id)
        assert denied.seen == 1


async def test_a_watch_outlives_its_breaks_and_what_the_api_has_forgotten(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    await cluster.driver.ensure(wanted(deployment))
    key = Key("clusters", namespace_name(deployment), "database")
    watched, expired = cluster.api.watched, cluster.api.expired
    waiting = asyncio.ensure_future(
        until(cluster.client, CLUSTER, key.name, key.namespace, _is_marked, PATIENCE_SECONDS)
    )
    await eventually(lambda: cluster.api.watched > watched)
    await cluster.api.break_watches()
    await eventually(lambda: cluster.api.watched > watched + 1)
    # Its version is older than what is remembered from now on.
    cluster.api.store.put(Key("persistentvolumes", "", "another"), {"kind": "PersistentVolume"})
    cluster.api.store.forget()
    await cluster.api.changed()
    await eventually(lambda: cluster.api.expired > expired)
    await eventually(lambda: cluster.api.watched > watched + 2)
    assert not waiting.done()
    cluster.api.store.merge(key, {"metadata": {"annotations": {"marked": "yes"}}})
    await cluster.api.changed()
    assert _is_marked(await waiting)


def _is_marked(made: Object | None) -> bool:
    return made is not None and "marked" in objects.annotations(made)


async def test_what_is_going_is_told_until_it_is_gone(tmp_path: Path) -> None:
    async with open_cluster(tmp_path, finalizing_seconds=0.8, patience=0.3) as slow:
        patient = new_deployment_id()
        with contextlib.suppress(DriverError):
            await slow.driver.ensure(wanted(patient))
        with pytest.raises(DriverError):
            await slow.driver.destroy(patient)
        assert await slow.driver.found() == [patient]
        await _destroyed(slow, patient)
        assert slow.api.store.objects == {}


async def _destroyed(slow: Cluster, deployment: DeploymentId) -> None:
    """Asks for it until it is done."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(DriverError):
                await slow.driver.destroy(deployment)
                return


async def test_another_installations_namespace_is_left_alone(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    key = Key("namespaces", "", namespace_name(deployment))
    labels = {objects.INSTALLATION_LABEL: "another", objects.DEPLOYMENT_LABEL: deployment}
    foreign = {"kind": "Namespace", "metadata": {"name": key.name, "labels": labels}}
    cluster.api.store.put(key, foreign)
    with pytest.raises(DriverError):
        await cluster.driver.ensure(wanted(deployment))
    await cluster.driver.destroy(deployment)
    assert deployment not in await cluster.driver.found()
    assert cluster.api.store.get(key)["metadata"]["labels"] == labels
    cluster.api.store.drop(key)


async def test_the_role_of_the_provisioner_allows_what_the_driver_does_and_no_more(
    cluster: Cluster, deployment: DeploymentId, other: DeploymentId
) -> None:
    await cluster.driver.ensure(wanted(deployment))
    await cluster.driver.sleep(deployment)
    await cluster.driver.branch(deployment, other)
    assert await cluster.driver.kept(deployment)
    await cluster.driver.destroy(other)
    await cluster.driver.found()
    rules = next(iter(yaml.safe_load_all(RBAC.read_text())))["rules"]
    allowed = {
        (group, resource, verb, name)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", ["*"])
    }
    named = {(group, resource, verb) for group, resource, verb, name in allowed if name != "*"}
    used = {
        (*one, use.name if one in named else "*")
        for use in cluster.api.uses
        for one in [(use.group, use.resource, use.verb)]
    }
    assert used == allowed
