"""Who may open which bucket: the part of object storage for which S3 has no words."""

from collections.abc import Sequence
from typing import Protocol

from services.provisioner.drivers.bucket_protocol import BucketAccess


class Identities(Protocol):
    """An identity per bucket. All methods raise DriverError."""

    async def grant(self, access: BucketAccess) -> None:
        """Makes these credentials open this bucket alone; idempotent."""
        ...

    async def granted(self, access: BucketAccess) -> bool:
        """Whether exactly this was granted."""
        ...

    async def revoke(self, bucket: str) -> None:
        """Takes away what opens the bucket; does nothing if there is nothing."""
        ...

    async def buckets(self) -> Sequence[str]:
        """Returns every bucket that somebody was granted, whether it is there or not."""
        ...
