"""The `cnpg` driver at a double of a cluster: its walls, its logins, its copies."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from services.provisioner.domain import DatabaseAddress, DatabaseRole
from services.provisioner.drivers import cnpg_objects as objects
from services.provisioner.drivers.cnpg_objects import namespace_name
from services.provisioner.drivers.listener import open_listeners
from services.provisioner.drivers.local_database import DATABASE, LOGINS
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.drivers.reception import House
from services.shared.ids import DeploymentId, new_deployment_id
from tests.cnpg_drivers import Cluster, eventually, open_cluster
from tests.deploy.validation import newest_minors, refused
from tests.kubernetes_double_store import Key
from tests.kubernetes_double_tls import new_authority
from tests.local_databases import open_session, wanted

WRITER = DatabaseRole.WRITER
PATIENCE_SECONDS = 30.0
BUILT_IN = {"Namespace", "Secret", "ResourceQuota", "LimitRange", "NetworkPolicy", "Deployment"}


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


async def test_a_namespace_has_walls_before_anything_runs_and_a_door_after_it_has_passwords(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    making = asyncio.ensure_future(cluster.driver.ensure(wanted(deployment)))
    await eventually(lambda: cluster.found(deployment, "clusters", "database") is not None)
    space = cluster.api.store.objects[Key("namespaces", "", namespace_name(deployment))]
    labels = space["metadata"]["labels"]
    assert labels["app.kubernetes.io/part-of"] == "bulkhead-deployment"
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    walls = [cluster.found(deployment, "networkpolicies", name) for name in ("default-deny", "own")]
    assert [wall["spec"]["policyTypes"] for wall in walls if wall] == [["Ingress", "Egress"]] * 2
    assert walls[0] is not None
    assert {"ingress", "egress"}.isdisjoint(walls[0]["spec"])
    for plural in ("resourcequotas", "limitranges"):
        assert cluster.found(deployment, plural, "database")
    assert cluster.found(deployment, "networkpolicies", "mesh") is None
    await making
    door = cluster.found(deployment, "networkpolicies", "mesh")
    assert door is not None
    (rule,) = door["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 5432}]
    assert rule["from"][0]["podSelector"]["matchLabels"]["app.kubernetes.io/name"] == "app-proxy"


async def test_kubernetes_takes_what_the_driver_makes(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    await cluster.driver.ensure(wanted(deployment))
    where = namespace_name(deployment)
    made = [
        made
        for key, made in cluster.api.store.objects.items()
        if where in (key.namespace, key.name) and made.get("kind") in BUILT_IN
    ]
    ours = [one for one in made if objects.DEPLOYMENT_LABEL in one["metadata"].get("labels", {})]
    assert {one["kind"] for one in ours} == BUILT_IN
    assert list(refused(ours, newest_minors()[-1])) == []


async def test_no_password_that_opens_a_database_is_in_the_cluster(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    await cluster.driver.ensure(wanted(deployment))
    told = str(cluster.api.store.objects)
    for role in DatabaseRole:
        assert cluster.driver.login(deployment, role, 1).password not in told
    superuser = cluster.found(deployment, "secrets", "database-superuser")
    assert superuser is not None
    assert superuser["data"]["password"].startswith("U0NSQU0tU0hBLTI1Ni")  # SCRAM-SHA-256


async def test_the_superuser_comes_by_tls_to_the_clusters_own_authority_and_to_no_other(
    cluster: Cluster, deployment: DeploymentId, tmp_path: Path
) -> None:
    await cluster.driver.ensure(wanted(deployment))
    assert cluster.operator.encrypted(namespace_name(deployment)) > 0
    assert await cluster.driver.measure(deployment)
    foreign = {"data": {"ca.crt": new_authority(tmp_path, "127.0.0.1").encoded}}
    cluster.api.store.merge(Key("secrets", namespace_name(deployment), "database-ca"), foreign)
    cluster.logins.forget(deployment)
    with pytest.raises(DriverError):
        await cluster.driver.measure(deployment)
    with pytest.raises(DriverError):
        await cluster.driver.ensure(wanted(deployment, quota_bytes=1 << 20))


@pytest.mark.promise("P-02")
async def test_the_guard_gives_back_a_password_that_a_tenant_has_changed(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    address = await cluster.driver.ensure(wanted(deployment))
    login = cluster.driver.login(deployment, WRITER, 1)
    session = await open_session(address, login)
    await session.execute(f"SET ROLE NONE; ALTER ROLE {login.user} PASSWORD 'of its own choosing'")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(asyncpg.InvalidPasswordError):
                (await open_session(address, login)).terminate()
                break
            await asyncio.sleep(0.1)
    session.terminate()
    await cluster.driver.sleep(deployment)
    await eventually(lambda: not cluster.operator.guards(namespace_name(deployment)))


async def test_a_copy_begins_closed_and_a_source_that_is_woken_meanwhile_stays_awake(
    cluster: Cluster, deployment: DeploymentId, other: DeploymentId
) -> None:
    await cluster.driver.ensure(wanted(deployment))
    await cluster.driver.sleep(deployment)
    copying = asyncio.ensure_future(cluster.driver.branch(deployment, other))
    await eventually(
        lambda: any(name.startswith(objects.COPYING) for name in cluster.notes(deployment))
    )
    assert await cluster.driver.exists(deployment) is None
    address = await cluster.driver.ensure(wanted(deployment))
    await copying
    assert await cluster.driver.exists(deployment) == address
    first = cluster.operator.first_rules[namespace_name(other)]
    assert not any(login in first for login in LOGINS)
    assert cluster.found(other, "networkpolicies", "mesh") is None
    policies = [key.name for key in cluster.api.store.objects if key.plural == "networkpolicies"]
    assert not [name for name in policies if name.startswith("copy-")]
    superuser = await cluster.logins.superuser(deployment)
    async with superuser.connected("postgres") as session:
        assert (
            await session.fetchval("SELECT count(*) FROM pg_roles WHERE rolname ~ '^copier_'") == 0
        )


async def test_a_copy_that_is_given_up_leaves_its_source_asleep(
    cluster: Cluster, deployment: DeploymentId, other: DeploymentId
) -> None:
    await cluster.driver.ensure(wanted(deployment))
    await cluster.driver.sleep(deployment)
    copying = asyncio.ensure_future(cluster.driver.branch(deployment, other))
    await eventually(lambda: cluster.found(other, "clusters", "database") is not None)
    copying.cancel()
    await asyncio.gather(copying, return_exceptions=True)
    await cluster.driver.destroy(other)
    assert cluster.notes(deployment)[objects.HIBERNATION] == "on"
    assert not any(name.startswith(objects.COPYING) for name in cluster.notes(deployment))


@pytest.mark.promise("P-12")
async def test_a_direct_connection_by_the_listener_wakes_a_hibernated_cluster(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    await cluster.driver.ensure(wanted(deployment))
    await cluster.driver.sleep(deployment)
    house = House(DATABASE, frozenset(LOGINS), 10)
    async with open_listeners(Waker(cluster), house, PortRange(20_000, 31_999)) as listeners:
        port = await listeners.open(deployment, None)
        assert port is not None
        login = cluster.driver.login(deployment, WRITER, 1)
        session = await open_session(DatabaseAddress(listeners.host, port), login)
        assert await session.fetchval("SELECT 1") == 1
        session.terminate()


class Waker:
    """Wakes by the driver, as `waking.Waking` does for deployments that are written down."""

    def __init__(self, cluster: Cluster) -> None:
        self._driver = cluster.driver

    async def wake(self, deployment: DeploymentId) -> DatabaseAddress:
        return await self.awake(deployment) or await self._driver.ensure(wanted(deployment))

    async def awake(self, deployment: DeploymentId) -> DatabaseAddress | None:
        return await self._driver.exists(deployment)


@pytest.mark.promise("P-03")
async def test_a_larger_quota_grows_the_volume_and_a_smaller_one_does_not_shrink_it(
    cluster: Cluster, deployment: DeploymentId
) -> None:
    def size() -> int:
        made = cluster.found(deployment, "clusters", "database")
        assert made is not None
        return objects.size_of(made)

    await cluster.driver.ensure(wanted(deployment))
    before = size()
    await cluster.driver.set_quota(deployment, 10 << 30)
    grown = size()
    assert grown > max(before, 10 << 30)
    await cluster.driver.set_quota(deployment, 1 << 20)
    assert size() == grown
    await cluster.driver.sleep(deployment)
    await cluster.driver.ensure(wanted(deployment))
    assert size() == grown
