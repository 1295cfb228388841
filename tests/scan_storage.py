"""What is left in the object storage; see `scan`."""

import ssl
from collections.abc import AsyncIterator, Collection
from typing import Any, Final

import httpx

from deploy.local.s3 import REGION, S3Server
from services.provisioner.drivers.bucket_protocol import BucketAccess
from tests.s3 import s3_client

# The filer's own log of changes lies there.
_LOG: Final = "/topics/"
_PAGE_SIZE: Final = 1_000
_SMALL_BYTES: Final = 4_096


async def storage_left(server: S3Server, names: Collection[str]) -> list[str]:
    """Returns a sentence for each bucket, object, version, upload and file that names them."""
    return [*await _seen_by_s3(server, names), *await _seen_by_the_filer(server, names)]


async def _seen_by_s3(server: S3Server, names: Collection[str]) -> list[str]:
    secret = server.secret_file.read_text().strip()
    access = BucketAccess(server.endpoint, REGION, "", server.access_key, secret)
    found = []
    async with s3_client(access) as client:
        for bucket in (await client.list_buckets())["Buckets"]:
            async for what, key in _content(client, bucket["Name"]):
                text = f"{bucket['Name']}/{key}"
                found += [f"s3: {what} {text} is left" for name in names if name in text][:1]
    return found


async def _content(client: Any, bucket: str) -> AsyncIterator[tuple[str, str]]:
    """Yields what there is in the bucket, itself first, each with its key."""
    yield "bucket", ""
    pages = client.get_paginator("list_object_versions")
    async for page in pages.paginate(Bucket=bucket):
        for version in page.get("Versions", ()):
            yield "version", version["Key"]
        for marker in page.get("DeleteMarkers", ()):
            yield "delete marker", marker["Key"]
    pages = client.get_paginator("list_multipart_uploads")
    async for page in pages.paginate(Bucket=bucket):
        for upload in page.get("Uploads", ()):
            yield "upload", upload["Key"]


async def _seen_by_the_filer(server: S3Server, names: Collection[str]) -> list[str]:
    context = ssl.create_default_context(cafile=server.identity.authority)
    context.load_cert_chain(server.identity.certificate, server.identity.key)
    async with httpx.AsyncClient(
        base_url=server.filer,
        verify=context,
        trust_env=False,
        headers={"accept": "application/json"},
    ) as http:
        return [
            f"filer: {path} is left"
            async for path, content in _files(http, "/")
            if any(name in path or name.encode() in content for name in names)
        ]


async def _files(http: httpx.AsyncClient, folder: str) -> AsyncIterator[tuple[str, bytes]]:
    """Yields each file and folder below, and what is in it if it is small."""
    last = ""
    while entries := await _listed(http, folder, last):
        for entry in entries:
            path = entry["FullPath"]
            if entry["Mode"] & _FOLDER_BIT:
                yield path, b""
                if f"{path}/" != _LOG:
                    async for inner in _files(http, f"{path}/"):
                        yield inner
            else:
                small = entry.get("FileSize", 0) <= _SMALL_BYTES
                yield path, (await http.get(path)).content if small else b""
        last = entries[-1]["FullPath"].rpartition("/")[2]


# Of a mode as Go writes it.
_FOLDER_BIT: Final = 1 << 31


async def _listed(http: httpx.AsyncClient, folder: str, last: str) -> list[dict[str, Any]]:
    query = {"limit": str(_PAGE_SIZE), "lastFileName": last}
    answer = await http.get(folder, params=query)
    if answer.status_code == httpx.codes.NOT_FOUND:
        return []
    return answer.raise_for_status().json().get("Entries") or []
