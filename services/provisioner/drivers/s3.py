"""Buckets on any storage that speaks S3; who may open them is its own affair (`Identities`)."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from services.provisioner.drivers import s3_objects
from services.provisioner.drivers.bucket_protocol import BucketAccess
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.drivers.s3_client import (
    S3Address,
    S3Client,
    open_s3_client,
    opens,
    s3_errors,
)
from services.provisioner.drivers.s3_identities import Identities
from services.provisioner.master_secret import MasterSecret
from services.shared.ids import DeploymentId

_USE = "bucket"
_NAME = re.compile(r"dep-(?P<id>[0-9a-z]{26})-[0-9a-f]{10}")
_TAG_BYTES = 5
# What HEAD says of a bucket that is not there.
_NOT_FOUND = "404"
_OURS_ALREADY = ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")
# For storage to learn of a change of identities.
_PATIENCE_SECONDS = 20.0
_POLL_SECONDS = 0.02


class S3Driver:
    """See `BucketDriver`."""

    def __init__(
        self,
        client: S3Client,
        http: httpx.AsyncClient,
        identities: Identities,
        secret: MasterSecret,
        address: S3Address,
    ) -> None:
        self._client = client
        self._http = http
        self._identities = identities
        self._secret = secret
        self._address = address

    async def ensure(self, deployment: DeploymentId) -> None:
        """Makes what is missing; returns when the credentials are seen to open the bucket."""
        access = self.access(deployment)
        with s3_errors(access.bucket, *_OURS_ALREADY):
            await self._client.create_bucket(Bucket=access.bucket)
        if not await self._identities.granted(access):
            await self._identities.grant(access)
        await self._until(access, opened=True)

    async def exists(self, deployment: DeploymentId) -> bool:
        """Whether the bucket is there and the identity is as it was granted."""
        access = self.access(deployment)
        return await self._there(access.bucket) and await self._identities.granted(access)

    async def kept(self, deployment: DeploymentId) -> bool:
        """Whether the bucket is there."""
        return await self._there(self._name(deployment))

    async def close(self, deployment: DeploymentId) -> None:
        """Takes the identity away, and sees that the bucket opens for it no more."""
        access = self.access(deployment)
        await self._identities.revoke(access.bucket)
        await self._until(access, opened=False)

    async def destroy(self, deployment: DeploymentId) -> int:
        """Ends access first, then empties the bucket and removes it."""
        await self.close(deployment)
        access = self.access(deployment)
        await s3_objects.abort_uploads(self._client, access.bucket)
        removed = await s3_objects.remove_objects(self._client, access.bucket)
        with s3_errors(access.bucket, s3_objects.NO_BUCKET):
            await self._client.delete_bucket(Bucket=access.bucket)
        return removed

    def access(self, deployment: DeploymentId) -> BucketAccess:
        """Returns the bucket's name and credentials, derived from the master secret."""
        bucket = self._name(deployment)
        return BucketAccess(
            endpoint=self._address.endpoint,
            region=self._address.region,
            bucket=bucket,
            # Not a secret: it says whose the other one is.
            access_key=bucket,
            secret_key=self._secret.password(_USE, deployment),
        )

    async def found(self) -> Sequence[DeploymentId]:
        """Returns the deployments of the buckets and identities whose names we would give."""
        with s3_errors("all buckets"):
            listed = await self._client.list_buckets()
        names = {bucket["Name"] for bucket in listed.get("Buckets", ())}
        names |= set(await self._identities.buckets())
        return sorted(filter(None, map(self._deployment, names)))

    async def put_file(self, deployment: DeploymentId, key: str, file: Path) -> int:
        """Returns the size of `file`, once it is in the bucket."""
        return await s3_objects.put_file(self._client, self._name(deployment), key, file)

    async def get_file(self, deployment: DeploymentId, key: str, file: Path) -> None:
        """Makes `file` what is in the bucket."""
        await s3_objects.get_file(self._client, self._name(deployment), key, file)

    async def delete_object(self, deployment: DeploymentId, key: str) -> None:
        """Removes every version of the object."""
        await s3_objects.remove_objects(self._client, self._name(deployment), key)

    async def _there(self, bucket: str) -> bool:
        with s3_errors(bucket, _NOT_FOUND):
            await self._client.head_bucket(Bucket=bucket)
            return True
        return False

    async def _until(self, access: BucketAccess, *, opened: bool) -> None:
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                while await opens(self._http, access) is not opened:  # noqa: ASYNC110 it tells nobody
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            state = "does not open yet" if opened else "still opens"
            raise DriverError(f"{access.bucket}: it {state} with its credentials") from None

    def _name(self, deployment: DeploymentId) -> str:
        """Returns `dep-…-…`: the deployment's id, and whose it is.

        The end is derived from the master secret, so that two installations that share a storage
        leave each other's buckets alone. Valid by S3's rules for names: at most 63 of `a-z0-9-`.
        """
        tag = self._secret.salt(_USE, deployment)[:_TAG_BYTES].hex()
        return f"{deployment.replace('_', '-')}-{tag}"

    def _deployment(self, name: str) -> DeploymentId | None:
        """Returns whose bucket has this name; None when we would not have given it."""
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        deployment = DeploymentId(f"dep_{match['id']}")
        return deployment if self._name(deployment) == name else None


@asynccontextmanager
async def open_s3_driver(
    address: S3Address, identities: Identities, secret: MasterSecret
) -> AsyncIterator[S3Driver]:
    """Yields the driver; its connections end with the context."""
    async with open_s3_client(address) as client, httpx.AsyncClient(trust_env=False) as http:
        yield S3Driver(client, http, identities, secret, address)
