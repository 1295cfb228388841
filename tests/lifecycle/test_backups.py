"""Backups from their making to their end: in a file, in a bucket, damaged, abandoned, deleted."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.provisioner import backup_store, store
from services.provisioner.backup_files import BackupFiles, Found, key_of
from services.provisioner.backup_sweep import BackupSweep
from services.provisioner.backups import Backups
from services.provisioner.buckets import open_buckets
from services.provisioner.domain import BackupTarget
from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.master_secret import MasterSecret, read_master_secret
from services.provisioner.operations import Operations
from services.provisioner.peers import AuthRegistry
from services.provisioner.queue import WorkQueue
from services.provisioner.settings import Settings
from services.shared.ids import BackupId, DeploymentId, TenantId, new_backup_id, new_deployment_id
from services.shared.postgres import Database, open_database
from tests.databases import SERVICES
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused
from tests.s3 import s3_client

FILE, BUCKET = pb2.BACKUP_TARGET_FILE, pb2.BACKUP_TARGET_BUCKET


@pytest.fixture(scope="module")
def provisioner(mesh_with_buckets: Mesh) -> ProvisionerServiceStub:
    return mesh_with_buckets.stub(ProvisionerServiceStub, "provisioner")


@pytest.fixture(scope="module")
async def customer(mesh_with_buckets: Mesh) -> Customer:
    return await mesh_with_buckets.customer()


@pytest.fixture
async def source(
    mesh_with_buckets: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> pb2.Deployment:
    """A deployment with a bucket, and with a database that holds a row."""
    created = await provisioner.CreateDeployment(
        pb2.CreateDeploymentRequest(request_id=fresh_id(), name="a", database=True, bucket=True),
        metadata=bearer(customer.key),
    )
    await succeeded(mesh_with_buckets, customer, created.operation)
    session = await opened(provisioner, customer, created.deployment.deployment_id)
    await session.execute("CREATE TABLE marks AS SELECT 1 AS mark")
    await session.close()
    return created.deployment


@pytest.fixture(scope="module")
async def buckets(mesh_with_buckets: Mesh) -> AsyncIterator[BucketDriver]:
    settings = settings_of(mesh_with_buckets)
    async with open_buckets(settings, read_master_secret(settings.database_secret_file)) as driver:
        assert driver is not None
        yield driver


@pytest.fixture(scope="module")
def files(mesh_with_buckets: Mesh, buckets: BucketDriver) -> BackupFiles:
    return BackupFiles(settings_of(mesh_with_buckets).backups_home, buckets)


@pytest.fixture(scope="module")
async def database(mesh_with_buckets: Mesh) -> AsyncIterator[Database]:
    folder = SERVICES / "provisioner" / "migrations"
    settings = settings_of(mesh_with_buckets)
    async with open_database(settings, "provisioner", folder) as opened_database:
        yield opened_database


def settings_of(mesh: Mesh) -> Settings:
    settings = mesh.settings["provisioner"]
    assert isinstance(settings, Settings)
    return settings


async def succeeded(mesh: Mesh, customer: Customer, operation: pb2.Operation) -> None:
    done = await mesh.finished(customer, operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED, done


async def opened(
    provisioner: ProvisionerServiceStub, customer: Customer, deployment_id: str
) -> "asyncpg.Connection[asyncpg.Record]":
    found = await provisioner.GetDatabaseConnection(
        pb2.GetDatabaseConnectionRequest(
            deployment_id=deployment_id, role=pb2.DATABASE_ROLE_WRITER
        ),
        metadata=bearer(customer.key),
    )
    return await asyncpg.connect(found.uri, ssl=False)


async def backed_up(
    mesh: Mesh, customer: Customer, deployment_id: str, target: "pb2.BackupTarget.ValueType" = FILE
) -> pb2.Backup:
    created = await mesh.stub(ProvisionerServiceStub, "provisioner").CreateBackup(
        pb2.CreateBackupRequest(request_id=fresh_id(), deployment_id=deployment_id, target=target),
        metadata=bearer(customer.key),
    )
    await succeeded(mesh, customer, created.operation)
    return created.backup


async def left_of(files: BackupFiles, deployment_id: str) -> list[Found]:
    return [one for one in await files.found() if one.deployment_id == deployment_id]


@pytest.mark.parametrize("target", [FILE, BUCKET], ids=["file", "bucket"])
async def test_a_backup_is_kept_where_it_was_asked_for_and_restored(
    mesh_with_buckets: Mesh,
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    source: pb2.Deployment,
    files: BackupFiles,
    buckets: BucketDriver,
    target: "pb2.BackupTarget.ValueType",
) -> None:
    metadata = bearer(customer.key)
    backup = await backed_up(mesh_with_buckets, customer, source.deployment_id, target)
    session = await opened(provisioner, customer, source.deployment_id)
    await session.execute("INSERT INTO marks VALUES (2)")
    await session.close()
    assert len(await left_of(files, source.deployment_id)) == (1 if target == FILE else 0)
    assert len(await objects(buckets, source.deployment_id)) == (1 if target == BUCKET else 0)
    restored = await provisioner.RestoreBackup(
        pb2.RestoreBackupRequest(
            request_id=fresh_id(), backup_id=backup.backup_id, name="again", mcp=True
        ),
        metadata=metadata,
    )
    await succeeded(mesh_with_buckets, customer, restored.operation)
    session = await opened(provisioner, customer, restored.deployment.deployment_id)
    assert [row["mark"] for row in await session.fetch("SELECT mark FROM marks")] == [1]
    await session.execute("INSERT INTO marks VALUES (3)")
    await session.close()
    assert await left_of(files, restored.deployment.deployment_id) == []
    await provisioner.DeleteBackup(
        pb2.DeleteBackupRequest(backup_id=backup.backup_id), metadata=metadata
    )
    assert await left_of(files, source.deployment_id) == []
    assert await objects(buckets, source.deployment_id) == []


async def objects(buckets: BucketDriver, deployment_id: str) -> list[str]:
    """Returns what lies in the bucket, as its own program sees it."""
    access = buckets.access(DeploymentId(deployment_id))
    async with s3_client(access) as own:
        listed = await own.list_objects_v2(Bucket=access.bucket)
    return [each["Key"] for each in listed.get("Contents", ())]


async def test_a_backup_that_its_tenant_has_changed_is_refused_and_leaves_nothing(
    mesh_with_buckets: Mesh,
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    source: pb2.Deployment,
    buckets: BucketDriver,
) -> None:
    kept = [
        await backed_up(mesh_with_buckets, customer, source.deployment_id, BUCKET) for _ in range(2)
    ]
    keys = [key_of(BackupId(backup.backup_id)) for backup in kept]
    access = buckets.access(DeploymentId(source.deployment_id))

    async def refusal() -> str:
        restored = await provisioner.RestoreBackup(
            pb2.RestoreBackupRequest(
                request_id=fresh_id(), backup_id=kept[0].backup_id, name="again"
            ),
            metadata=bearer(customer.key),
        )
        done = await mesh_with_buckets.finished(customer, restored.operation.operation_id)
        assert (done.state, done.retries) == (pb2.OPERATION_STATE_FAILED, 0)
        with expect_refused("FAILED_PRECONDITION", "OPERATION_FAILED"):
            await opened(provisioner, customer, restored.deployment.deployment_id)
        return done.message

    async with s3_client(access) as own:
        one, other = [
            await (await own.get_object(Bucket=access.bucket, Key=key))["Body"].read()
            for key in keys
        ]
        middle = len(one) // 2
        flipped = one[:middle] + bytes([one[middle] ^ 1]) + one[middle + 1 :]
        for body in (flipped, other):
            await own.put_object(Bucket=access.bucket, Key=keys[0], Body=body)
            assert await refusal() == "the backup is damaged"
        await own.delete_object(Bucket=access.bucket, Key=keys[0])
        assert await refusal() == "the backup is not there any more"


async def test_a_branch_of_what_is_deleted_meanwhile_is_whole_or_fails_for_good(
    mesh_with_buckets: Mesh,
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    source: pb2.Deployment,
) -> None:
    metadata = bearer(customer.key)
    branched = await provisioner.CreateBranch(
        pb2.CreateBranchRequest(
            request_id=fresh_id(), deployment_id=source.deployment_id, name="twig"
        ),
        metadata=metadata,
    )
    deleted = await provisioner.DeleteDeployment(
        pb2.DeleteDeploymentRequest(deployment_id=source.deployment_id), metadata=metadata
    )
    await succeeded(mesh_with_buckets, customer, deleted.operation)
    done = await mesh_with_buckets.finished(customer, branched.operation.operation_id)
    if done.state == pb2.OPERATION_STATE_SUCCEEDED:
        session = await opened(provisioner, customer, branched.deployment.deployment_id)
        assert await session.fetchval("SELECT mark FROM marks") == 1
        await session.close()
    else:
        assert done.message == "the deployment to copy is gone"


async def test_backups_go_with_their_deployment(
    mesh_with_buckets: Mesh,
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    source: pb2.Deployment,
    files: BackupFiles,
) -> None:
    metadata = bearer(customer.key)
    backup = await backed_up(mesh_with_buckets, customer, source.deployment_id)
    await backed_up(mesh_with_buckets, customer, source.deployment_id, BUCKET)
    deleted = await provisioner.DeleteDeployment(
        pb2.DeleteDeploymentRequest(deployment_id=source.deployment_id), metadata=metadata
    )
    await succeeded(mesh_with_buckets, customer, deleted.operation)
    assert await left_of(files, source.deployment_id) == []
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await provisioner.RestoreBackup(
            pb2.RestoreBackupRequest(
                request_id=fresh_id(), backup_id=backup.backup_id, name="again"
            ),
            metadata=metadata,
        )


async def test_what_crashes_leave_of_backups_is_removed_and_nothing_else(
    mesh_with_buckets: Mesh,
    customer: Customer,
    source: pb2.Deployment,
    files: BackupFiles,
    database: Database,
) -> None:
    kept = await backed_up(mesh_with_buckets, customer, source.deployment_id)
    home = settings_of(mesh_with_buckets).backups_home
    (whole,) = [one.file for one in await left_of(files, source.deployment_id)]
    abandoned = await write_backup(database, customer, source.deployment_id)
    unknown = new_deployment_id()
    left = [
        home / f"{source.deployment_id}.{abandoned}",
        home / f".{source.deployment_id}.{kept.backup_id}.{'0' * 16}.partial",
        home / f"{source.deployment_id}.{new_backup_id()}",
        home / f".{unknown}.fetched",
        home / f"..{unknown}.fetched.{'0' * 16}",
    ]
    ours = home / "what somebody else put here"
    for file in (*left, ours):
        file.write_bytes(b"left")
    # After an earlier database was restored, what no row speaks of may be what was made since.
    await sweep(mesh_with_buckets, database, files, removes=False).tidy_backups()
    assert all(is_there(file) for file in left)
    await sweep(mesh_with_buckets, database, files).tidy_backups()
    assert [file.name for file in left if is_there(file)] == []
    assert is_there(whole)
    assert is_there(ours)
    listed = await mesh_with_buckets.stub(ProvisionerServiceStub, "provisioner").ListBackups(
        pb2.ListBackupsRequest(deployment_id=source.deployment_id), metadata=bearer(customer.key)
    )
    states = {backup.backup_id: backup.state for backup in listed.backups}
    assert states == {
        kept.backup_id: pb2.BACKUP_STATE_READY,
        abandoned: pb2.BACKUP_STATE_FAILED,
    }


async def test_a_deployment_has_no_more_backups_than_its_limit(
    mesh_with_buckets: Mesh,
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    source: pb2.Deployment,
    database: Database,
) -> None:
    for _ in range(settings_of(mesh_with_buckets).backups_per_deployment):
        await write_backup(database, customer, source.deployment_id)
    with expect_refused("RESOURCE_EXHAUSTED", "RESOURCE_LIMIT"):
        await provisioner.CreateBackup(
            pb2.CreateBackupRequest(request_id=fresh_id(), deployment_id=source.deployment_id),
            metadata=bearer(customer.key),
        )


def is_there(file: Path) -> bool:
    return file.exists()


async def write_backup(database: Database, customer: Customer, deployment_id: str) -> BackupId:
    """Writes a backup that nobody makes."""
    async with database.tenant(TenantId(customer.tenant_id)) as connection:
        deployment = await store.get_deployment(connection, DeploymentId(deployment_id))
        assert deployment is not None
        backup = await backup_store.insert(
            connection, deployment, new_backup_id(), BackupTarget.FILE
        )
    return backup.backup_id


def sweep(
    mesh: Mesh, database: Database, files: BackupFiles, *, removes: bool = True
) -> BackupSweep:
    """The sweep of another replica."""
    operations = Operations(
        MasterSecret(b"nothing is begun here"), WorkQueue("provisioner_service")
    )
    registry = AuthRegistry(mesh.channel("auth", "provisioner"))
    return BackupSweep(
        database,
        Backups(database, operations, registry, files, per_deployment=1, supported=True),
        files,
        removes=removes,
    )
