"""The buckets of deployments (P-07): made once with the deployment, and never made anew.

One that somebody removed had something in it: an empty one in its place would hide that. It is
reported as lost, and whoever asks for the way into it is told so.
"""

from services.provisioner import resource_store
from services.provisioner.domain import Deployment, ResourceKind, ResourceState
from services.provisioner.drivers.bucket_protocol import BucketAccess, BucketDriver
from services.provisioner.drivers.protocol import DriverError
from services.shared.errors import FailedPreconditionError, Reason, UnavailableError
from services.shared.postgres import Database

_LOST = "the bucket was removed, and what was in it is gone"
# Of one that was never ready; the making alone can have left it so.
_UNMADE = frozenset({ResourceState.PENDING, ResourceState.DEGRADED})


class OwnBuckets:
    """Makes buckets, and tells how each is opened."""

    def __init__(self, database: Database, driver: BucketDriver | None) -> None:
        self._database = database
        self._driver = driver

    def check_offered(self) -> None:
        """Returns when deployments can have buckets here.

        Raises:
            FailedPreconditionError: no storage is set up.
        """
        if self._driver is None:
            raise FailedPreconditionError(
                "this installation has no object storage, so that a deployment can declare no"
                " bucket: its operator sets BULKHEAD_S3_ENDPOINT",
                Reason.RESOURCE_NOT_DECLARED,
            )

    async def make(self, deployment: Deployment) -> None:
        """Makes the bucket that the deployment declares, while it is being made itself.

        One that was ready before is left as it is, there or not.

        Raises:
            DriverError: it is not ready; a later try may succeed.
        """
        if not deployment.bucket or await self._state(deployment) not in _UNMADE:
            return
        if self._driver is None:
            raise DriverError("no object storage is set up")
        await self._driver.ensure(deployment.deployment_id)
        await self._write(deployment, ResourceState.READY, "")

    async def close(self, deployment: Deployment) -> None:
        """Lets the deployment's credentials open nothing, until `open`; what is in there stays.

        Raises:
            DriverError: they may open it still; a later try may succeed.
        """
        if not deployment.bucket or await self._state(deployment) is ResourceState.LOST:
            return
        if self._driver is None:
            raise DriverError("no object storage is set up")
        # Written first: whoever looks after buckets leaves one alone that is to be closed.
        await self._write(deployment, ResourceState.SUSPENDED, "")
        await self._driver.close(deployment.deployment_id)

    async def open(self, deployment: Deployment) -> None:
        """Lets the same credentials open the bucket again; one that went meanwhile is lost.

        Raises:
            DriverError: they do not open it yet; a later try may succeed.
        """
        if await self._state(deployment) is not ResourceState.SUSPENDED:
            return
        if self._driver is None:
            raise DriverError("no object storage is set up")
        if not await self._driver.kept(deployment.deployment_id):
            await self._write(deployment, ResourceState.LOST, _LOST)
            return
        await self._driver.ensure(deployment.deployment_id)
        await self._write(deployment, ResourceState.READY, "")

    async def remove(self, deployment: Deployment) -> None:
        """Leaves no bucket of a deployment that cannot be made.

        Raises:
            DriverError: something of it may be left.
        """
        if deployment.bucket and self._driver is not None:
            await self._driver.destroy(deployment.deployment_id)

    async def access(self, deployment: Deployment) -> BucketAccess:
        """Returns how the bucket of a deployment that is ready is opened.

        Raises:
            FailedPreconditionError: it is lost.
            UnavailableError: the storage is away.
        """
        if self._driver is None:
            raise _away()
        if not await self.is_there(deployment):
            raise FailedPreconditionError(_LOST, Reason.RESOURCE_LOST)
        return self._driver.access(deployment.deployment_id)

    async def is_there(self, deployment: Deployment) -> bool:
        """Whether the bucket of a deployment that is ready is there; writes down when it is not.

        Where only the right to open it went, it is given again. One that is lost stays so, whatever
        comes in its place.

        Raises:
            UnavailableError: the storage is away.
        """
        if self._driver is None:
            raise _away()
        if await self._state(deployment) is ResourceState.LOST:
            return False
        try:
            there = await self._mended(self._driver, deployment)
        except DriverError as error:
            raise _away() from error
        if not there:
            await self._write(deployment, ResourceState.LOST, _LOST)
        return there

    async def _mended(self, driver: BucketDriver, deployment: Deployment) -> bool:
        if await driver.exists(deployment.deployment_id):
            return True
        if not await driver.kept(deployment.deployment_id):
            return False
        await driver.ensure(deployment.deployment_id)
        return True

    async def _state(self, deployment: Deployment) -> ResourceState | None:
        here = deployment.deployment_id
        async with self._database.tenant(deployment.tenant_id) as connection:
            resources = (await resource_store.list_of(connection, [here]))[here]
        states = (each.state for each in resources if each.kind is ResourceKind.BUCKET)
        return next(states, None)

    async def _write(self, deployment: Deployment, state: ResourceState, reason: str) -> None:
        async with self._database.tenant(deployment.tenant_id) as connection:
            await resource_store.set_state(
                connection, deployment.deployment_id, ResourceKind.BUCKET, state, reason
            )


def _away() -> UnavailableError:
    return UnavailableError("the object storage is away")
