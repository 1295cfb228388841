"""What every kind of object storage must do, on a real one of each."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.drivers.protocol import MissingError
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId, new_deployment_id
from tests.s3 import MASTER, OTHER_MASTER, Storage, random_file, refusal, s3_client

# More than one page and one batch of what S3 lists and removes at once.
MANY = 1_005
# More than one part of an upload.
LARGE = (16 << 20) + 12_345


@dataclass(frozen=True)
class Kind:
    """A driver of one kind, how to open another, and how to reach past it."""

    driver: BucketDriver
    another: Callable[[MasterSecret], AbstractAsyncContextManager[BucketDriver]]
    administrator: Any


@pytest.fixture(scope="module", params=["s3"])
async def kind(s3: Storage) -> AsyncIterator[Kind]:
    async with s3.driver() as driver, s3_client(await s3.administrator()) as administrator:
        yield Kind(driver, s3.driver, administrator)


@pytest.fixture
async def made(kind: Kind) -> AsyncIterator[DeploymentId]:
    """A deployment with a bucket."""
    deployment = new_deployment_id()
    await kind.driver.ensure(deployment)
    yield deployment
    await kind.driver.destroy(deployment)


async def put(client: Any, bucket: str, *keys: str) -> None:
    places = asyncio.Semaphore(20)

    async def one(key: str) -> None:
        async with places:
            await client.put_object(Bucket=bucket, Key=key, Body=b"content")

    async with asyncio.TaskGroup() as group:
        for key in keys:
            group.create_task(one(key))


async def keys(client: Any, bucket: str) -> list[str]:
    listed = await client.list_objects_v2(Bucket=bucket)
    return [each["Key"] for each in listed.get("Contents", ())]


async def gone(kind: Kind, deployment: DeploymentId) -> bool:
    """Whether nothing is left, seen by the driver and past it."""
    access = kind.driver.access(deployment)
    async with s3_client(access) as own:
        refused = await refusal(own.list_objects_v2(Bucket=access.bucket))
    missing = await refusal(kind.administrator.list_objects_v2(Bucket=access.bucket))
    left = deployment in await kind.driver.found() or await kind.driver.exists(deployment)
    return (refused, missing, left) == ("InvalidAccessKeyId", "NoSuchBucket", False)


async def test_what_was_made_is_there_and_opens(kind: Kind, made: DeploymentId) -> None:
    access = kind.driver.access(made)
    async with s3_client(access) as own:
        await put(own, access.bucket, "a/b")
        assert await keys(own, access.bucket) == ["a/b"]
    assert await kind.driver.exists(made)
    assert made in await kind.driver.found()


async def test_making_it_again_changes_nothing(kind: Kind, made: DeploymentId) -> None:
    access = kind.driver.access(made)
    await put(kind.administrator, access.bucket, "kept")
    await kind.driver.ensure(made)
    assert kind.driver.access(made) == access
    assert await keys(kind.administrator, access.bucket) == ["kept"]


async def test_a_deployment_without_a_bucket_has_nothing(kind: Kind) -> None:
    deployment = new_deployment_id()
    assert not await kind.driver.exists(deployment)
    assert deployment not in await kind.driver.found()


async def test_a_bucket_that_was_removed_by_hand_is_missed(kind: Kind, made: DeploymentId) -> None:
    await kind.administrator.delete_bucket(Bucket=kind.driver.access(made).bucket)
    assert not await kind.driver.exists(made)
    # Who may open it is still there, and has to go.
    assert made in await kind.driver.found()


async def test_everything_in_it_goes_with_it(kind: Kind, made: DeploymentId) -> None:
    access = kind.driver.access(made)
    names = [f"folder {number % 7}/{number}" for number in range(MANY)]
    async with s3_client(access) as own:
        await put(own, access.bucket, *names)
        await own.put_bucket_versioning(
            Bucket=access.bucket, VersioningConfiguration={"Status": "Enabled"}
        )
        await put(own, access.bucket, "versioned")
        await put(own, access.bucket, "versioned")
        await own.delete_object(Bucket=access.bucket, Key="versioned")
        await own.delete_object(Bucket=access.bucket, Key=names[0])
        await begin_upload(own, access.bucket)
    # Two versions and the marker of one, a marker of another, and all that was there before.
    assert await kind.driver.destroy(made) == MANY + 4
    assert await gone(kind, made)


async def begin_upload(client: Any, bucket: str) -> None:
    begun = await client.create_multipart_upload(Bucket=bucket, Key="unfinished")
    await client.upload_part(
        Bucket=bucket,
        Key="unfinished",
        UploadId=begun["UploadId"],
        PartNumber=1,
        Body=bytes(5 << 20),
    )


@pytest.mark.promise("P-07")
async def test_one_that_is_closed_keeps_what_is_in_it_and_opens_again(
    kind: Kind, made: DeploymentId
) -> None:
    access = kind.driver.access(made)
    await put(kind.administrator, access.bucket, "a")
    for _ in range(2):
        await kind.driver.close(made)
    assert await kind.driver.kept(made)
    assert not await kind.driver.exists(made)
    async with s3_client(access) as own:
        with pytest.raises(ClientError):
            await own.get_object(Bucket=access.bucket, Key="a")
        await kind.driver.ensure(made)
        got = await own.get_object(Bucket=access.bucket, Key="a")
        assert await got["Body"].read()


async def test_one_that_was_never_made_can_be_closed(kind: Kind) -> None:
    deployment = new_deployment_id()
    await kind.driver.close(deployment)
    assert await gone(kind, deployment)


async def test_what_is_gone_can_be_destroyed_again(kind: Kind, made: DeploymentId) -> None:
    await kind.driver.destroy(made)
    assert await kind.driver.destroy(made) == 0
    assert await gone(kind, made)


async def test_what_was_never_made_can_be_destroyed(kind: Kind) -> None:
    deployment = new_deployment_id()
    assert await kind.driver.destroy(deployment) == 0
    assert await gone(kind, deployment)


async def test_a_bucket_alone_is_found_and_destroyed(kind: Kind) -> None:
    deployment = new_deployment_id()
    bucket = kind.driver.access(deployment).bucket
    await kind.administrator.create_bucket(Bucket=bucket)
    await put(kind.administrator, bucket, "a")
    assert not await kind.driver.exists(deployment)
    assert deployment in await kind.driver.found()
    assert await kind.driver.destroy(deployment) == 1
    assert await gone(kind, deployment)


async def test_an_identity_alone_is_destroyed(kind: Kind, made: DeploymentId) -> None:
    await kind.administrator.delete_bucket(Bucket=kind.driver.access(made).bucket)
    assert await kind.driver.destroy(made) == 0
    assert await gone(kind, made)


async def test_many_drivers_at_once_lose_nothing_of_one_another(kind: Kind) -> None:
    deployments = [new_deployment_id() for _ in range(8)]
    async with kind.another(MASTER) as another:
        drivers = (kind.driver, another)
        async with asyncio.TaskGroup() as group:
            for deployment in deployments:
                for driver in drivers:
                    group.create_task(driver.ensure(deployment))
        there = await asyncio.gather(*(another.exists(each) for each in deployments))
        assert there == [True] * len(deployments)
        async with asyncio.TaskGroup() as group:
            for deployment in deployments:
                for driver in drivers:
                    group.create_task(driver.destroy(deployment))
    assert not set(deployments) & set(await kind.driver.found())


async def test_two_installations_leave_each_other_alone(kind: Kind, made: DeploymentId) -> None:
    async with kind.another(OTHER_MASTER) as other:
        assert made not in await other.found()
        assert not await other.exists(made)
        assert await other.destroy(made) == 0
    assert await kind.driver.exists(made)


@pytest.mark.parametrize("size", [0, 10, LARGE], ids=["empty", "small", "large"])
async def test_a_file_comes_back_as_it_was(
    kind: Kind, made: DeploymentId, tmp_path: Path, size: int
) -> None:
    file, back = random_file(tmp_path, size), tmp_path / "back"
    assert await kind.driver.put_file(made, "backups/one", file) == size
    await kind.driver.get_file(made, "backups/one", back)
    assert digest(back) == digest(file)
    assert names(tmp_path) == {file.name, back.name}
    await kind.driver.delete_object(made, "backups/one")
    with pytest.raises(MissingError):
        await kind.driver.get_file(made, "backups/one", back)
    assert digest(back) == digest(file)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


async def test_a_file_that_is_cut_short_leaves_no_part(
    kind: Kind, made: DeploymentId, tmp_path: Path
) -> None:
    file, bucket = random_file(tmp_path, LARGE), kind.driver.access(made).bucket
    putting = asyncio.create_task(kind.driver.put_file(made, "half", file))
    while not await uploads(kind, bucket):
        assert not putting.done()
        await asyncio.sleep(0)
    putting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await putting
    assert await uploads(kind, bucket) == []
    assert await keys(kind.administrator, bucket) == []


async def test_an_upload_that_was_left_behind_goes_with_the_next_try(
    kind: Kind, made: DeploymentId, tmp_path: Path
) -> None:
    bucket = kind.driver.access(made).bucket
    await begin_upload(kind.administrator, bucket)
    await kind.driver.put_file(made, "unfinished", random_file(tmp_path, 10))
    assert await uploads(kind, bucket) == []


async def uploads(kind: Kind, bucket: str) -> list[str]:
    listed = await kind.administrator.list_multipart_uploads(Bucket=bucket)
    return [each["Key"] for each in listed.get("Uploads", ())]


async def test_an_object_goes_with_its_versions_and_no_other(
    kind: Kind, made: DeploymentId
) -> None:
    bucket = kind.driver.access(made).bucket
    await kind.administrator.put_bucket_versioning(
        Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}
    )
    await put(kind.administrator, bucket, "one", "one-more")
    await put(kind.administrator, bucket, "one")
    await kind.driver.delete_object(made, "one")
    await kind.driver.delete_object(made, "one")
    listed = await kind.administrator.list_object_versions(Bucket=bucket)
    assert [each["Key"] for each in listed["Versions"]] == ["one-more"]
    assert "DeleteMarkers" not in listed
