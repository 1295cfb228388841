"""What a kind of object storage has to do to give each deployment a bucket of its own (P-07)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from services.shared.ids import DeploymentId


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """How a bucket is opened, by the S3 protocol: these credentials open it and no other."""

    # A URL.
    endpoint: str
    region: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)


class BucketDriver(Protocol):
    """Makes buckets, one per deployment, and takes them away.

    Every method but `access` raises `DriverError` (see `protocol.py`) when the storage is away or
    refuses; a later try may succeed.
    """

    async def ensure(self, deployment: DeploymentId) -> None:
        """Returns once the deployment's credentials open its bucket; idempotent."""
        ...

    async def exists(self, deployment: DeploymentId) -> bool:
        """Whether the bucket and the identity that opens it are both there; changes nothing."""
        ...

    async def kept(self, deployment: DeploymentId) -> bool:
        """Whether the bucket itself is there, whoever may open it; changes nothing."""
        ...

    async def close(self, deployment: DeploymentId) -> None:
        """Returns once the deployment's credentials open nothing; what is in its bucket stays.

        `ensure` opens it again, by the same credentials. Idempotent; without a bucket there is
        nothing to close.
        """
        ...

    async def destroy(self, deployment: DeploymentId) -> int:
        """Returns how many objects went; nothing of the bucket or its identity is left.

        Versions and delete markers count as objects. The credentials open nothing any more before
        the first object goes. Idempotent, from every state that an earlier try can have left.
        """
        ...

    def access(self, deployment: DeploymentId) -> BucketAccess:
        """Returns how the deployment's bucket is opened: derived, not stored."""
        ...

    async def found(self) -> Sequence[DeploymentId]:
        """Returns every deployment of ours of which a bucket or an identity is left."""
        ...

    async def put_file(self, deployment: DeploymentId, key: str, file: Path) -> int:
        """Returns the size of `file` in bytes, once all of it is the object `key`.

        Whole or not at all. Of two that write the same key at once, one may fail.
        """
        ...

    async def get_file(self, deployment: DeploymentId, key: str, file: Path) -> None:
        """Makes `file` what the object `key` holds, whole or not at all.

        Raises:
            MissingError: there is no such object.
        """
        ...

    async def delete_object(self, deployment: DeploymentId, key: str) -> None:
        """Removes the object `key` with all its versions; does nothing if there is none."""
        ...
