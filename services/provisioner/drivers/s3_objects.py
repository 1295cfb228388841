"""What is in a bucket, however much: emptied in batches, files moved in parts."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from services.provisioner.drivers.protocol import DriverError, MissingError
from services.provisioner.drivers.s3_client import S3Client, first_error, s3_errors

NO_BUCKET = "NoSuchBucket"
_NO_UPLOAD = "NoSuchUpload"
_NO_KEY = "NoSuchKey"
# The most that one request may name.
_BATCH = 1_000
_BATCHES_AT_ONCE = 4
_ABORTS_AT_ONCE = 8
# Objects written while a bucket is emptied need a further pass; its credentials are dead by then.
_PASSES = 5
# The most parts that an object may have; the smallest part is 5 MiB.
_MOST_PARTS = 10_000
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 2
_PIECE_BYTES = 1 << 20


async def remove_objects(client: S3Client, bucket: str, key: str | None = None) -> int:
    """Returns how many versions and delete markers went: of one key, or all there are.

    Raises:
        DriverError: some are left.
    """
    removed = 0
    for _ in range(_PASSES):
        gone = await _remove_once(client, bucket, key)
        if not gone:
            return removed
        removed += gone
    raise DriverError(f"{bucket}: objects are written while they are removed")


async def abort_uploads(client: S3Client, bucket: str, key: str | None = None) -> None:
    """Ends the unfinished multipart uploads: those of one key, or all; their parts go."""
    places = asyncio.Semaphore(_ABORTS_AT_ONCE)

    async def abort(upload: dict[str, str]) -> None:
        async with places:
            await _abort(client, bucket, upload["Key"], upload["UploadId"])

    with s3_errors(bucket, NO_BUCKET), first_error():
        pages = client.get_paginator("list_multipart_uploads")
        async with asyncio.TaskGroup() as group:
            async for page in pages.paginate(Bucket=bucket, Prefix=key or ""):
                for upload in page.get("Uploads", ()):
                    if key in (None, upload["Key"]):
                        group.create_task(abort(upload))


async def put_file(client: S3Client, bucket: str, key: str, file: Path) -> int:
    """Returns the size of `file` in bytes, once it is the object `key`, whole."""
    size = (await asyncio.to_thread(file.stat)).st_size
    # What a try that was killed left behind.
    await abort_uploads(client, bucket, key)
    with s3_errors(bucket):
        if size <= _PART_BYTES:
            content = await asyncio.to_thread(file.read_bytes)
            await client.put_object(Bucket=bucket, Key=key, Body=content)
        else:
            await _put_in_parts(client, bucket, key, file, size)
    return size


async def get_file(client: S3Client, bucket: str, key: str, file: Path) -> None:
    """Makes `file` what the object `key` holds, readable by its owner alone.

    Raises:
        MissingError: there is no such object.
        DriverError: it did not come; a later try may succeed.
    """
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with s3_errors(bucket, _NO_KEY):
            answer = await client.get_object(Bucket=bucket, Key=key)
            await _receive(answer, fresh)
            fresh.replace(file)
            return
        raise MissingError(f"{bucket}: the object is not there")
    finally:
        fresh.unlink(missing_ok=True)


async def _remove_once(client: S3Client, bucket: str, key: str | None) -> int:
    """Returns how many were there; all of them went, or DriverError is raised."""
    places = asyncio.Semaphore(_BATCHES_AT_ONCE)
    found = 0
    with first_error():
        async with asyncio.TaskGroup() as group:
            async for batch in _batches(client, bucket, key):
                found += len(batch)
                await places.acquire()
                task = group.create_task(_remove(client, bucket, batch))
                task.add_done_callback(lambda _: places.release())
    return found


async def _batches(
    client: S3Client, bucket: str, key: str | None
) -> AsyncIterator[Sequence[dict[str, str]]]:
    with s3_errors(bucket, NO_BUCKET):
        pages = client.get_paginator("list_object_versions")
        async for page in pages.paginate(
            Bucket=bucket, Prefix=key or "", PaginationConfig={"PageSize": _BATCH}
        ):
            entries = [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
            batch = [_named(entry) for entry in entries if key in (None, entry["Key"])]
            if batch:
                yield batch


def _named(entry: dict[str, Any]) -> dict[str, str]:
    return {"Key": entry["Key"], "VersionId": entry.get("VersionId", "null")}


async def _remove(client: S3Client, bucket: str, batch: Sequence[dict[str, str]]) -> None:
    with s3_errors(bucket, NO_BUCKET):
        answer = await client.delete_objects(
            Bucket=bucket, Delete={"Objects": list(batch), "Quiet": True}
        )
        if failed := answer.get("Errors"):
            raise DriverError(f"{bucket}: {len(failed)} objects stay: {failed[0].get('Code')}")


async def _put_in_parts(client: S3Client, bucket: str, key: str, file: Path, size: int) -> None:
    upload = (await client.create_multipart_upload(Bucket=bucket, Key=key))["UploadId"]
    try:
        parts = await _upload(client, bucket, key, upload, file, size)
        await client.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )
    except BaseException:
        # Also when we are cancelled; if it fails, it goes with the next try or with the bucket.
        with contextlib.suppress(DriverError):
            await _abort(client, bucket, key, upload)
        raise


async def _upload(
    client: S3Client, bucket: str, key: str, upload: str, file: Path, size: int
) -> list[dict[str, Any]]:
    places = asyncio.Semaphore(_PARTS_AT_ONCE)
    length = max(_PART_BYTES, -(-size // _MOST_PARTS))

    async def part(number: int, offset: int) -> dict[str, Any]:
        async with places:
            content = await asyncio.to_thread(_read, file, offset, min(length, size - offset))
            answer = await client.upload_part(
                Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=content
            )
        return {"PartNumber": number, "ETag": answer["ETag"]} | _checksum(answer)

    with first_error():
        async with asyncio.TaskGroup() as group:
            offsets = range(0, size, length)
            tasks = [group.create_task(part(n, at)) for n, at in enumerate(offsets, start=1)]
    return [task.result() for task in tasks]


def _checksum(answer: dict[str, Any]) -> dict[str, str]:
    return {"ChecksumCRC32": answer["ChecksumCRC32"]} if "ChecksumCRC32" in answer else {}


def _read(file: Path, offset: int, length: int) -> bytes:
    with file.open("rb") as opened:
        content = os.pread(opened.fileno(), length, offset)
    if len(content) != length:
        raise DriverError(f"{file.name} became shorter while it was read")
    return content


async def _abort(client: S3Client, bucket: str, key: str, upload: str) -> None:
    with s3_errors(bucket, NO_BUCKET, _NO_UPLOAD):
        await client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)


async def _receive(answer: Any, file: Path) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as opened:
        async with answer["Body"]:
            async for piece in answer["Body"].iter_chunks(_PIECE_BYTES):
                await asyncio.to_thread(opened.write, piece)
        await asyncio.to_thread(os.fsync, opened.fileno())
        received = opened.tell()
    if received != answer["ContentLength"]:
        raise DriverError(f"{file.name} came in part only")
