"""A real SeaweedFS for tests, and the driver that makes buckets there."""

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from deploy.local.s3 import REGION, S3Server, provisioner_settings, s3_server
from services.provisioner.buckets import open_buckets
from services.provisioner.drivers.bucket_protocol import BucketAccess, BucketDriver
from services.provisioner.master_secret import MasterSecret
from services.provisioner.settings import Settings

MASTER = MasterSecret(b"one installation's master secret")
OTHER_MASTER = MasterSecret(b"that of an installation besides it")


@dataclass
class Storage:
    """One server for the session, started when the first test asks for it."""

    home: Path
    _running: AsyncExitStack = field(default_factory=AsyncExitStack)
    _server: S3Server | None = None

    async def server(self) -> S3Server:
        """Returns the running server."""
        if self._server is None:
            self._server = await self._running.enter_async_context(s3_server(self.home))
        return self._server

    async def settings(self) -> dict[str, Any]:
        """Returns the settings of a provisioner that makes its buckets there."""
        return provisioner_settings(await self.server())

    async def close(self) -> None:
        """Ends the server, if there is one."""
        await self._running.aclose()

    async def administrator(self) -> BucketAccess:
        """Returns access to every bucket."""
        server = await self.server()
        secret = server.secret_file.read_text().strip()
        return BucketAccess(server.endpoint, REGION, "", server.access_key, secret)

    @asynccontextmanager
    async def driver(self, master: MasterSecret = MASTER) -> AsyncIterator[BucketDriver]:
        """Yields a driver of its own, as another replica or installation has."""
        settings = Settings(**(await self.settings()))
        async with open_buckets(settings, master) as driver:
            assert driver is not None
            yield driver


@asynccontextmanager
async def s3_client(access: BucketAccess | None, endpoint: str = "") -> AsyncIterator[Any]:
    """Yields a client with these credentials; without any when there is no access."""
    config = AioConfig(
        signature_version="s3v4" if access else "unsigned",
        s3={"addressing_style": "path"},
        retries={"total_max_attempts": 1},
        proxies={},
    )
    async with get_session().create_client(
        "s3",
        endpoint_url=access.endpoint if access else endpoint,
        region_name=REGION,
        aws_access_key_id=access.access_key if access else None,
        aws_secret_access_key=access.secret_key if access else None,
        config=config,
    ) as client:
        yield client


async def refusal(call: Any) -> str:
    """Returns the code with which a call is refused; empty when it is not."""
    try:
        answer = await call
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    # Some calls answer per item.
    return str(next((each["Code"] for each in answer.get("Errors", ())), ""))


def random_file(folder: Path, size: int) -> Path:
    """Returns a file of so many random bytes."""
    file = folder / secrets.token_hex(4)
    file.write_bytes(secrets.token_bytes(size))
    return file
