"""Looks after buckets that went without our doing, and removes those that nobody wants (P-07)."""

import structlog

from services.provisioner import resource_store, store
from services.provisioner.domain import LOCK_PATIENCE, DeploymentState
from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.own_buckets import OwnBuckets
from services.provisioner.ports import Locks
from services.shared.errors import BulkheadError
from services.shared.ids import DeploymentId
from services.shared.postgres import Database

_GONE = frozenset({DeploymentState.DELETED, DeploymentState.FAILED})


class BucketSweep:
    """One that was removed by hand is reported, and never made anew."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        buckets: OwnBuckets,
        driver: BucketDriver | None,
        *,
        removes: bool = True,
    ) -> None:
        self._database = database
        self._locks = locks
        self._buckets = buckets
        self._driver = driver
        self._removes = removes

    async def look_after_buckets(self) -> None:
        """Writes down which buckets are not there any more.

        Raises:
            BulkheadError: the storage, or our own database, is away.
        """
        if self._driver is None:
            return
        async with self._database.service() as connection:
            wanted = await resource_store.ready_buckets(connection)
        for deployment in wanted:
            if not await self._driver.exists(deployment.deployment_id):
                await self._look_again(deployment.deployment_id)

    async def _look_again(self, deployment_id: DeploymentId) -> None:
        """Under the lock it is as the row says: nobody is making it, or taking it away."""
        async with self._locks.hold(deployment_id, LOCK_PATIENCE):
            async with self._database.service() as connection:
                wanted = await resource_store.ready_buckets(connection, deployment_id)
            for deployment in wanted:
                if not await self._buckets.is_there(deployment):
                    structlog.get_logger().error("bucket lost", deployment_id=deployment_id)

    async def remove_unwanted_buckets(self) -> None:
        """Removes every bucket whose deployment is unknown, deleted or given up.

        Where nothing is to be removed it is reported alone. The rows are read after the buckets
        were found, and again under the lock: a deployment's row is always there before its bucket.

        Raises:
            DriverError: the storage is away.
        """
        if self._driver is None:
            return
        for deployment_id in await self._driver.found():
            if await self._is_wanted(deployment_id):
                continue
            if self._removes:
                await self._remove(self._driver, deployment_id)
            else:
                structlog.get_logger().warning("unwanted bucket left", deployment_id=deployment_id)

    async def _remove(self, driver: BucketDriver, deployment_id: DeploymentId) -> None:
        try:
            async with self._locks.hold(deployment_id, LOCK_PATIENCE):
                if not await self._is_wanted(deployment_id):
                    await driver.destroy(deployment_id)
                    structlog.get_logger().warning(
                        "unwanted bucket removed", deployment_id=deployment_id
                    )
        except (BulkheadError, DriverError) as error:
            # The others do not wait for it; the next sweep tries again.
            structlog.get_logger().warning(
                "bucket not removed", deployment_id=deployment_id, error=type(error).__name__
            )

    async def _is_wanted(self, deployment_id: DeploymentId) -> bool:
        async with self._database.service() as connection:
            deployment = await store.get_deployment(connection, deployment_id)
        return deployment is not None and deployment.state not in _GONE
