"""The S3 protocol as the bucket driver speaks it: its client, its errors, a look with a key."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import httpx
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError

from services.provisioner.drivers.bucket_protocol import BucketAccess
from services.provisioner.drivers.protocol import DriverError

_CONNECT_SECONDS = 5.0
# Between two pieces of an answer, not for the whole of it.
_READ_SECONDS = 60.0
_LOOK_SECONDS = 10.0
_TRIES = 3
_CONNECTIONS = 20

# Requests are not typed: the library makes its methods from S3's own description at run time.
S3Client = Any


@dataclass(frozen=True, slots=True)
class S3Address:
    """Where the storage is, and as whom all buckets are administered there."""

    endpoint: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)


@asynccontextmanager
async def open_s3_client(address: S3Address) -> AsyncIterator[S3Client]:
    """Yields a client that administers every bucket; nothing is asked before the first use."""
    config = AioConfig(
        signature_version="s3v4",
        # A bucket is part of the path: names of hosts would need a wildcard in the DNS.
        s3={"addressing_style": "path"},
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        retries={"mode": "standard", "total_max_attempts": _TRIES},
        max_pool_connections=_CONNECTIONS,
        proxies={},
    )
    async with get_session().create_client(
        "s3",
        endpoint_url=address.endpoint,
        region_name=address.region,
        aws_access_key_id=address.access_key,
        aws_secret_access_key=address.secret_key,
        config=config,
    ) as client:
        yield client


@contextmanager
def s3_errors(bucket: str, *harmless: str) -> Iterator[None]:
    """Ends the block at an error of S3: quietly when its code is `harmless`.

    Raises:
        DriverError: another one, told by its code alone.
    """
    try:
        yield
    except ClientError as error:
        if code_of(error) not in harmless:
            raise DriverError(f"{bucket}: the storage answered {code_of(error)}") from error
    except (BotoCoreError, HTTPClientError) as error:
        raise DriverError(f"{bucket}: {type(error).__name__}") from error


@contextmanager
def first_error() -> Iterator[None]:
    """Raises the first error of a group of tasks, instead of the group."""
    try:
        yield
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None


def code_of(error: ClientError) -> str:
    """Returns the error's code; the HTTP status where S3 has no room for one (HEAD)."""
    return str(error.response.get("Error", {}).get("Code", "an error"))


async def opens(http: httpx.AsyncClient, access: BucketAccess) -> bool:
    """Whether the bucket is opened by these credentials now.

    Raises:
        DriverError: the storage says neither yes nor no.
    """
    status = await _look(http, access)
    if status not in (HTTPStatus.OK, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
        raise DriverError(f"{access.bucket}: the storage answered {status}")
    return status == HTTPStatus.OK


async def _look(http: httpx.AsyncClient, access: BucketAccess) -> int:
    """Returns the status of a HEAD with these credentials: far cheaper than a client for each."""
    request = AWSRequest("HEAD", f"{access.endpoint.rstrip('/')}/{access.bucket}")
    credentials = Credentials(access.access_key, access.secret_key)
    S3SigV4Auth(credentials, "s3", access.region).add_auth(request)
    try:
        answer = await http.head(
            request.url, headers=dict(request.headers.items()), timeout=_LOOK_SECONDS
        )
    except (httpx.HTTPError, OSError) as error:
        raise DriverError(f"{access.bucket}: {type(error).__name__}") from error
    return answer.status_code
