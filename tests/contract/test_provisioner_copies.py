"""Branches and backups over the wire: success, each refusal, each bad input."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused

UNKNOWN_DEPLOYMENT = "dep_" + "0" * 26
UNKNOWN_BACKUP = "bak_" + "0" * 26

Call = Callable[..., Awaitable[Any]]


@pytest.fixture(scope="session")
def provisioner(mesh: Mesh) -> ProvisionerServiceStub:
    return mesh.stub(ProvisionerServiceStub, "provisioner")


@pytest.fixture(scope="module")
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


@pytest.fixture(scope="module")
async def source(mesh: Mesh, customer: Customer) -> pb2.Deployment:
    return await mesh.deployment(customer)


@pytest.fixture(scope="module")
async def backup(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer, source: pb2.Deployment
) -> pb2.Backup:
    return await backed_up(mesh, provisioner, customer, source)


async def backed_up(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer, source: pb2.Deployment
) -> pb2.Backup:
    created = await provisioner.CreateBackup(
        pb2.CreateBackupRequest(request_id=fresh_id(), deployment_id=source.deployment_id),
        metadata=bearer(customer.key),
    )
    assert created.backup.state == pb2.BACKUP_STATE_RUNNING
    assert created.operation.kind == pb2.OPERATION_KIND_BACK_UP
    done = await mesh.finished(customer, created.operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED, done
    return created.backup


async def listed(
    provisioner: ProvisionerServiceStub, customer: Customer, deployment_id: str
) -> list[pb2.Backup]:
    answer = await provisioner.ListBackups(
        pb2.ListBackupsRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    return list(answer.backups)


async def test_a_branch_says_where_it_came_from_and_inherits_the_terms(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    made = await provisioner.CreateDeployment(
        pb2.CreateDeploymentRequest(
            request_id=fresh_id(), name="trunk", database=True, storage_bytes=123_456_789
        ),
        metadata=bearer(customer.key),
    )
    await mesh.finished(customer, made.operation.operation_id)
    request = pb2.CreateBranchRequest(
        request_id=fresh_id(), deployment_id=made.deployment.deployment_id, name="twig"
    )
    answers = await asyncio.gather(
        *(provisioner.CreateBranch(request, metadata=bearer(customer.key)) for _ in range(3))
    )
    branch = answers[0].deployment
    assert {answer.deployment.deployment_id for answer in answers} == {branch.deployment_id}
    assert branch.source_deployment_id == made.deployment.deployment_id
    assert (branch.source_backup_id, branch.storage_bytes) == ("", 123_456_789)
    assert branch.idle_timeout == made.deployment.idle_timeout
    assert branch.host.startswith("twig-")
    assert branch.database
    assert (branch.mcp, branch.bucket, branch.bootstrap_admin) == (False, False, False)
    done = await mesh.finished(customer, answers[0].operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED, done
    request.name = "other"
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await provisioner.CreateBranch(request, metadata=bearer(customer.key))


async def test_a_backup_is_listed_restored_and_deleted(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer, source: pb2.Deployment
) -> None:
    backup = await backed_up(mesh, provisioner, customer, source)
    (found,) = [
        one
        for one in await listed(provisioner, customer, source.deployment_id)
        if one.backup_id == backup.backup_id
    ]
    assert found.state == pb2.BACKUP_STATE_READY
    assert found.size_bytes > 100_000
    assert found.target == pb2.BACKUP_TARGET_FILE
    assert backup.backup_id in found.location
    restoring = pb2.RestoreBackupRequest(
        request_id=fresh_id(), backup_id=backup.backup_id, name="again"
    )
    restored = await provisioner.RestoreBackup(restoring, metadata=bearer(customer.key))
    assert restored.deployment.source_backup_id == backup.backup_id
    assert restored.deployment.source_deployment_id == source.deployment_id
    done = await mesh.finished(customer, restored.operation.operation_id)
    assert done.state == pb2.OPERATION_STATE_SUCCEEDED, done
    again = await provisioner.RestoreBackup(restoring, metadata=bearer(customer.key))
    assert again.deployment.deployment_id == restored.deployment.deployment_id
    deleting = pb2.DeleteBackupRequest(backup_id=backup.backup_id)
    for _ in range(2):
        await provisioner.DeleteBackup(deleting, metadata=bearer(customer.key))
    left = await listed(provisioner, customer, source.deployment_id)
    assert backup.backup_id not in {one.backup_id for one in left}
    restoring.request_id = fresh_id()
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await provisioner.RestoreBackup(restoring, metadata=bearer(customer.key))


async def test_backups_are_listed_in_pages_newest_first_and_made_once_for_a_request(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    deployment = await mesh.deployment(customer)
    made = [(await backed_up(mesh, provisioner, customer, deployment)).backup_id for _ in range(2)]
    request = pb2.CreateBackupRequest(request_id=fresh_id(), deployment_id=deployment.deployment_id)
    answers = await asyncio.gather(
        *(provisioner.CreateBackup(request, metadata=bearer(customer.key)) for _ in range(3))
    )
    assert len({answer.operation.operation_id for answer in answers}) == 1
    await mesh.finished(customer, answers[0].operation.operation_id)
    made.append(answers[0].backup.backup_id)
    first = await provisioner.ListBackups(
        pb2.ListBackupsRequest(deployment_id=deployment.deployment_id, page_size=2),
        metadata=bearer(customer.key),
    )
    rest = await provisioner.ListBackups(
        pb2.ListBackupsRequest(
            deployment_id=deployment.deployment_id, page_token=first.next_page_token
        ),
        metadata=bearer(customer.key),
    )
    found = [one.backup_id for one in (*first.backups, *rest.backups)]
    assert (found, rest.next_page_token) == (list(reversed(made)), "")
    request.target = pb2.BACKUP_TARGET_BUCKET
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await provisioner.CreateBackup(request, metadata=bearer(customer.key))
    with expect_refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", field="page_token"):
        await provisioner.ListBackups(
            pb2.ListBackupsRequest(deployment_id=deployment.deployment_id, page_token="nonsense"),
            metadata=bearer(customer.key),
        )


async def test_what_has_no_database_or_no_bucket_is_not_copied(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer, source: pb2.Deployment
) -> None:
    bare = await mesh.deployment(customer, database=False, mcp=False)
    metadata = bearer(customer.key)
    for request in (
        pb2.CreateBackupRequest(request_id=fresh_id(), deployment_id=bare.deployment_id),
        pb2.CreateBackupRequest(
            request_id=fresh_id(),
            deployment_id=source.deployment_id,
            target=pb2.BACKUP_TARGET_BUCKET,
        ),
    ):
        with expect_refused("FAILED_PRECONDITION", "RESOURCE_NOT_DECLARED"):
            await provisioner.CreateBackup(request, metadata=metadata)
    with expect_refused("FAILED_PRECONDITION", "RESOURCE_NOT_DECLARED"):
        await provisioner.CreateBranch(
            pb2.CreateBranchRequest(
                request_id=fresh_id(), deployment_id=bare.deployment_id, name="a"
            ),
            metadata=metadata,
        )


async def test_a_suspended_deployment_is_not_to_be_had_by_way_of_a_copy(
    mesh: Mesh, provisioner: ProvisionerServiceStub, customer: Customer
) -> None:
    deployment = await mesh.deployment(customer)
    backup = await backed_up(mesh, provisioner, customer, deployment)
    metadata = bearer(customer.key)
    suspended = await provisioner.SuspendDeployment(
        pb2.SuspendDeploymentRequest(deployment_id=deployment.deployment_id), metadata=metadata
    )
    await mesh.finished(customer, suspended.operation.operation_id)
    for calling in (
        provisioner.CreateBranch(
            pb2.CreateBranchRequest(
                request_id=fresh_id(), deployment_id=deployment.deployment_id, name="a"
            ),
            metadata=metadata,
        ),
        provisioner.RestoreBackup(
            pb2.RestoreBackupRequest(request_id=fresh_id(), backup_id=backup.backup_id, name="a"),
            metadata=metadata,
        ),
        provisioner.CreateBackup(
            pb2.CreateBackupRequest(request_id=fresh_id(), deployment_id=deployment.deployment_id),
            metadata=metadata,
        ),
    ):
        with expect_refused("FAILED_PRECONDITION", "DEPLOYMENT_SUSPENDED"):
            await calling


@pytest.mark.parametrize(
    ("method", "field", "fields"),
    [
        ("CreateBranch", "request_id", {"deployment_id": UNKNOWN_DEPLOYMENT, "name": "a"}),
        ("CreateBranch", "deployment_id", {"request_id": "r", "name": "a"}),
        ("CreateBranch", "name", {"request_id": "r", "deployment_id": UNKNOWN_DEPLOYMENT}),
        ("CreateBackup", "request_id", {"deployment_id": UNKNOWN_DEPLOYMENT}),
        ("CreateBackup", "deployment_id", {"request_id": "r"}),
        (
            "CreateBackup",
            "target",
            {"request_id": "r", "deployment_id": UNKNOWN_DEPLOYMENT, "target": 9},
        ),
        ("ListBackups", "deployment_id", {}),
        ("ListBackups", "page_size", {"deployment_id": UNKNOWN_DEPLOYMENT, "page_size": -1}),
        ("DeleteBackup", "backup_id", {}),
        ("RestoreBackup", "request_id", {"backup_id": UNKNOWN_BACKUP, "name": "a"}),
        ("RestoreBackup", "backup_id", {"request_id": "r", "name": "a"}),
        ("RestoreBackup", "name", {"request_id": "r", "backup_id": UNKNOWN_BACKUP}),
    ],
)
async def test_a_copy_with_a_bad_field_is_refused_by_name(
    provisioner: ProvisionerServiceStub,
    customer: Customer,
    method: str,
    field: str,
    fields: dict[str, Any],
) -> None:
    request = getattr(pb2, f"{method}Request")(**fields)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await getattr(provisioner, method)(request, metadata=bearer(customer.key))


@pytest.mark.promise("P-41")
async def test_what_is_another_tenants_does_not_exist(
    mesh: Mesh,
    provisioner: ProvisionerServiceStub,
    source: pb2.Deployment,
    backup: pb2.Backup,
) -> None:
    stranger = bearer((await mesh.customer()).key)
    branch = pb2.CreateBranchRequest(request_id=fresh_id(), name="a")
    copy = pb2.CreateBackupRequest(request_id=fresh_id())
    restoring = pb2.RestoreBackupRequest(request_id=fresh_id(), name="a")
    for deployment_id, backup_id in (
        (source.deployment_id, backup.backup_id),
        (UNKNOWN_DEPLOYMENT, UNKNOWN_BACKUP),
        ("dep_x", "bak_x"),
    ):
        branch.deployment_id = copy.deployment_id = deployment_id
        restoring.backup_id = backup_id
        for calling in (
            provisioner.CreateBranch(branch, metadata=stranger),
            provisioner.CreateBackup(copy, metadata=stranger),
            provisioner.ListBackups(
                pb2.ListBackupsRequest(deployment_id=deployment_id), metadata=stranger
            ),
            provisioner.DeleteBackup(
                pb2.DeleteBackupRequest(backup_id=backup_id), metadata=stranger
            ),
            provisioner.RestoreBackup(restoring, metadata=stranger),
        ):
            with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
                await calling
