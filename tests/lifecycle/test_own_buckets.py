"""A deployment's bucket from its making to its end, on a real object storage (P-07)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from botocore.exceptions import ClientError
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from deploy.local.ports import free_ports
from services.provisioner import store
from services.provisioner.buckets import open_buckets
from services.provisioner.domain import Deployment
from services.provisioner.drivers.bucket_protocol import BucketAccess, BucketDriver
from services.provisioner.drivers.seaweed_identities import FilerAddress, open_seaweed_identities
from services.provisioner.master_secret import read_master_secret
from services.provisioner.own_buckets import OwnBuckets
from services.provisioner.settings import Settings
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId
from services.shared.postgres import Database, open_database
from tests.databases import SERVICES
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused
from tests.s3 import Storage, s3_client

CONTENT = b"kept by the deployment's own program"


@pytest.fixture(scope="module")
async def customer(mesh_with_buckets: Mesh) -> Customer:
    return await mesh_with_buckets.customer()


@pytest.fixture
async def made(mesh_with_buckets: Mesh, customer: Customer) -> pb2.Deployment:
    return await mesh_with_buckets.deployment(customer, database=False, mcp=False, bucket=True)


@pytest.fixture(scope="module")
async def driver(mesh_with_buckets: Mesh) -> AsyncIterator[BucketDriver]:
    """The way of another replica to the buckets."""
    settings = settings_of(mesh_with_buckets)
    async with open_buckets(settings, read_master_secret(settings.database_secret_file)) as opened:
        assert opened is not None
        yield opened


@pytest.fixture(scope="module")
async def database(mesh_with_buckets: Mesh) -> AsyncIterator[Database]:
    folder = SERVICES / "provisioner" / "migrations"
    async with open_database(settings_of(mesh_with_buckets), "provisioner", folder) as opened:
        yield opened


def settings_of(mesh: Mesh) -> Settings:
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    return settings


async def environment(mesh: Mesh, customer: Customer, deployment_id: str) -> dict[str, str]:
    key = await mesh.key(customer, deployment_id, ("environment:read",))
    found = await mesh.stub(ProvisionerServiceStub, "provisioner").GetEnvironment(
        pb2.GetEnvironmentRequest(), metadata=bearer(key.key)
    )
    return {variable.name: variable.value for variable in found.variables}


@asynccontextmanager
async def own_client(found: dict[str, str]) -> AsyncIterator[tuple[Any, str]]:
    """Yields a client as the deployment's program makes it, and the bucket's name."""
    access = BucketAccess(
        endpoint=found["BULKHEAD_BUCKET_ENDPOINT"],
        region=found["BULKHEAD_BUCKET_REGION"],
        bucket=found["BULKHEAD_BUCKET_NAME"],
        access_key=found["BULKHEAD_BUCKET_ACCESS_KEY"],
        secret_key=found["BULKHEAD_BUCKET_SECRET_KEY"],
    )
    async with s3_client(access) as client:
        yield client, access.bucket


async def bucket_of(mesh: Mesh, customer: Customer, deployment_id: str) -> pb2.Resource:
    got = await mesh.stub(ProvisionerServiceStub, "provisioner").GetDeployment(
        pb2.GetDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    (found,) = [each for each in got.deployment.resources if each.kind == pb2.RESOURCE_KIND_BUCKET]
    return found


@pytest.mark.promise("P-07")
async def test_a_program_works_with_its_bucket_until_its_deployment_is_deleted(
    mesh_with_buckets: Mesh, customer: Customer, made: pb2.Deployment, driver: BucketDriver
) -> None:
    found = await environment(mesh_with_buckets, customer, made.deployment_id)
    resource = await bucket_of(mesh_with_buckets, customer, made.deployment_id)
    assert resource.state == pb2.RESOURCE_STATE_READY
    async with own_client(found) as (client, bucket):
        await client.put_object(Bucket=bucket, Key="key", Body=CONTENT)
        got = await client.get_object(Bucket=bucket, Key="key")
        assert await got["Body"].read() == CONTENT
        deleted = await mesh_with_buckets.stub(
            ProvisionerServiceStub, "provisioner"
        ).DeleteDeployment(
            pb2.DeleteDeploymentRequest(deployment_id=made.deployment_id),
            metadata=bearer(customer.key),
        )
        ended = await mesh_with_buckets.finished(customer, deleted.operation.operation_id)
        assert ended.state == pb2.OPERATION_STATE_SUCCEEDED
        with pytest.raises(ClientError):
            await client.get_object(Bucket=bucket, Key="key")
    assert made.deployment_id not in await driver.found()


@pytest.mark.promise("P-07")
async def test_the_bucket_of_a_suspended_deployment_is_shut_to_what_was_given_out_before(
    mesh_with_buckets: Mesh, customer: Customer, made: pb2.Deployment
) -> None:
    here = {"deployment_id": made.deployment_id}
    stub = mesh_with_buckets.stub(ProvisionerServiceStub, "provisioner")
    found = await environment(mesh_with_buckets, customer, made.deployment_id)
    async with own_client(found) as (client, bucket):
        await client.put_object(Bucket=bucket, Key="key", Body=CONTENT)
        suspended = await stub.SuspendDeployment(
            pb2.SuspendDeploymentRequest(**here), metadata=bearer(customer.key)
        )
        await mesh_with_buckets.finished(customer, suspended.operation.operation_id)
        with pytest.raises(ClientError):
            await client.get_object(Bucket=bucket, Key="key")
        resource = await bucket_of(mesh_with_buckets, customer, made.deployment_id)
        assert resource.state == pb2.RESOURCE_STATE_SUSPENDED
        resumed = await stub.ResumeDeployment(
            pb2.ResumeDeploymentRequest(**here), metadata=bearer(customer.key)
        )
        await mesh_with_buckets.finished(customer, resumed.operation.operation_id)
        got = await client.get_object(Bucket=bucket, Key="key")
        assert await got["Body"].read() == CONTENT
    resource = await bucket_of(mesh_with_buckets, customer, made.deployment_id)
    assert resource.state == pb2.RESOURCE_STATE_READY


@pytest.mark.promise("P-07")
async def test_a_bucket_removed_by_hand_is_lost_and_not_made_anew(
    mesh_with_buckets: Mesh,
    customer: Customer,
    made: pb2.Deployment,
    s3: Storage,
    driver: BucketDriver,
    database: Database,
) -> None:
    found = await environment(mesh_with_buckets, customer, made.deployment_id)
    bucket = found["BULKHEAD_BUCKET_NAME"]
    async with s3_client(await s3.administrator()) as administrator:
        await administrator.delete_bucket(Bucket=bucket)
        # Whoever crashed at the end of the making comes here again.
        own = OwnBuckets(database, driver)
        await own.make(await row(database, made.deployment_id))
        for _ in range(2):
            with expect_refused("FAILED_PRECONDITION", "RESOURCE_LOST"):
                await environment(mesh_with_buckets, customer, made.deployment_id)
        resource = await bucket_of(mesh_with_buckets, customer, made.deployment_id)
        assert resource.state == pb2.RESOURCE_STATE_LOST
        assert "removed" in resource.reason
        assert not await driver.kept(DeploymentId(made.deployment_id))
        # One that somebody puts there is another one.
        await administrator.create_bucket(Bucket=bucket)
        with expect_refused("FAILED_PRECONDITION", "RESOURCE_LOST"):
            await environment(mesh_with_buckets, customer, made.deployment_id)


async def row(database: Database, deployment_id: str) -> Deployment:
    async with database.service() as connection:
        found = await store.get_deployment(connection, DeploymentId(deployment_id))
    assert found is not None
    return found


async def test_a_right_that_was_taken_by_hand_is_given_again(
    mesh_with_buckets: Mesh, customer: Customer, made: pb2.Deployment, driver: BucketDriver
) -> None:
    found = await environment(mesh_with_buckets, customer, made.deployment_id)
    settings = settings_of(mesh_with_buckets)
    filer = FilerAddress(
        settings.seaweed_filer,
        settings.seaweed_cert_file,
        settings.seaweed_key_file,
        settings.seaweed_ca_file,
    )
    async with own_client(found) as (client, bucket):
        await client.put_object(Bucket=bucket, Key="key", Body=CONTENT)
        async with open_seaweed_identities(filer) as identities:
            await identities.revoke(bucket)
        assert not await driver.exists(DeploymentId(made.deployment_id))
        assert await environment(mesh_with_buckets, customer, made.deployment_id) == found
        got = await client.get_object(Bucket=bucket, Key="key")
        assert await got["Body"].read() == CONTENT


async def test_storage_that_is_away_is_told_of_and_nothing_is_lost_for_it(
    mesh_with_buckets: Mesh, customer: Customer, made: pb2.Deployment, database: Database
) -> None:
    settings = settings_of(mesh_with_buckets)
    nowhere = settings.model_copy(update={"s3_endpoint": f"http://127.0.0.1:{free_ports(1)[0]}"})
    secret = read_master_secret(settings.database_secret_file)
    deployment = await row(database, made.deployment_id)
    async with open_buckets(nowhere, secret) as driver:
        with pytest.raises(UnavailableError):
            await OwnBuckets(database, driver).access(deployment)
    with pytest.raises(UnavailableError):
        await OwnBuckets(database, None).access(deployment)
    assert await environment(mesh_with_buckets, customer, made.deployment_id)


async def test_where_there_is_no_storage_no_bucket_can_be_declared(mesh: Mesh) -> None:
    customer = await mesh.customer()
    stub = mesh.stub(ProvisionerServiceStub, "provisioner")
    request = pb2.CreateDeploymentRequest(request_id=fresh_id(), name="with-bucket", bucket=True)
    with expect_refused("FAILED_PRECONDITION", "RESOURCE_NOT_DECLARED"):
        await stub.CreateDeployment(request, metadata=bearer(customer.key))
    listed = await stub.ListDeployments(pb2.ListDeploymentsRequest(), metadata=bearer(customer.key))
    assert not listed.deployments
