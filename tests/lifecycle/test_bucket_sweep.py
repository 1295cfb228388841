"""Buckets that went without our doing, and buckets that nobody wants (P-07)."""

from collections.abc import AsyncIterator

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.bucket_sweep import BucketSweep
from services.provisioner.buckets import open_buckets
from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.locks import DeploymentLocks
from services.provisioner.master_secret import read_master_secret
from services.provisioner.own_buckets import OwnBuckets
from services.provisioner.settings import Settings
from services.shared.ids import DeploymentId, new_deployment_id
from services.shared.postgres import Database, open_database
from tests.apps import App
from tests.databases import SERVICES
from tests.mesh import Mesh
from tests.s3 import Storage, s3_client


@pytest.fixture
async def driver(mesh_with_buckets: Mesh) -> AsyncIterator[BucketDriver]:
    settings = settings_of(mesh_with_buckets)
    async with open_buckets(settings, read_master_secret(settings.database_secret_file)) as opened:
        assert opened is not None
        yield opened


@pytest.fixture
async def database(mesh_with_buckets: Mesh) -> AsyncIterator[Database]:
    folder = SERVICES / "provisioner" / "migrations"
    async with open_database(settings_of(mesh_with_buckets), "provisioner", folder) as opened:
        yield opened


@pytest.fixture
def sweep(database: Database, driver: BucketDriver) -> BucketSweep:
    """The sweep of another replica."""
    return BucketSweep(*parts(database, driver))


@pytest.fixture
def reporting(database: Database, driver: BucketDriver) -> BucketSweep:
    """One that removes nothing."""
    return BucketSweep(*parts(database, driver), removes=False)


def parts(
    database: Database, driver: BucketDriver
) -> tuple[Database, DeploymentLocks, OwnBuckets, BucketDriver]:
    return database, DeploymentLocks(database), OwnBuckets(database, driver), driver


def settings_of(mesh: Mesh) -> Settings:
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    return settings


async def an_app_with_a_bucket(mesh: Mesh) -> App:
    customer = await mesh.customer()
    made = await mesh.deployment(customer, database=False, mcp=False, bucket=True)
    return App(mesh, customer, made.deployment_id, made.host)


async def bucket_of(app: App) -> pb2.Resource:
    found = (await app.get()).resources
    return next(each for each in found if each.kind == pb2.RESOURCE_KIND_BUCKET)


async def test_a_bucket_removed_by_hand_is_reported_by_the_sweep_and_not_made_anew(
    mesh_with_buckets: Mesh, s3: Storage, driver: BucketDriver, sweep: BucketSweep
) -> None:
    app, other = [await an_app_with_a_bucket(mesh_with_buckets) for _ in range(2)]
    await sweep.look_after_buckets()
    assert (await bucket_of(app)).state == pb2.RESOURCE_STATE_READY
    name = driver.access(DeploymentId(app.deployment_id)).bucket
    async with s3_client(await s3.administrator()) as administrator:
        await administrator.delete_bucket(Bucket=name)
    for _ in range(2):
        await sweep.look_after_buckets()
        lost = await bucket_of(app)
        assert lost.state == pb2.RESOURCE_STATE_LOST
        assert "removed" in lost.reason
    assert not await driver.kept(DeploymentId(app.deployment_id))
    assert (await bucket_of(other)).state == pb2.RESOURCE_STATE_READY
    # It is deleted like any other, all the same.
    await app.done(await app.delete())


async def test_a_bucket_that_nobody_wants_is_removed_and_no_other(
    mesh_with_buckets: Mesh, driver: BucketDriver, sweep: BucketSweep, reporting: BucketSweep
) -> None:
    app, stray = await an_app_with_a_bucket(mesh_with_buckets), new_deployment_id()
    await driver.ensure(stray)
    assert stray in await driver.found()
    # After an earlier database was restored, what no row speaks of may be what was made since.
    await reporting.remove_unwanted_buckets()
    assert stray in await driver.found()
    await sweep.remove_unwanted_buckets()
    left = await driver.found()
    assert stray not in left
    assert app.deployment_id in left
