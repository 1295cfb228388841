"""Holds what is wanted against what is, from time to time, and makes up for what got lost."""

import asyncio
from collections.abc import Awaitable

import structlog

from services.provisioner import operation_store, resource_store, store, tombstone_store
from services.provisioner.backup_sweep import BackupSweep
from services.provisioner.bucket_sweep import BucketSweep
from services.provisioner.domain import LOCK_PATIENCE, DeploymentState
from services.provisioner.drivers.protocol import DatabaseDriver, DriverError
from services.provisioner.listening import Listening
from services.provisioner.ports import Locks, Queue, Subject
from services.provisioner.waking import Waking
from services.shared.errors import BulkheadError
from services.shared.ids import DeploymentId
from services.shared.postgres import Database

_GONE = frozenset({DeploymentState.DELETED, DeploymentState.FAILED})


class Sweep:
    """Finds work that nobody waits for, servers that do not run, and servers that nobody wants."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        queue: Queue,
        waking: Waking,
        listening: Listening,
        driver: DatabaseDriver,
        backups: BackupSweep,
        buckets: BucketSweep,
        *,
        removes: bool = True,
    ) -> None:
        self._database = database
        self._locks = locks
        self._queue = queue
        self._waking = waking
        self._listening = listening
        self._driver = driver
        self._backups = backups
        self._buckets = buckets
        self._removes = removes

    async def run(self, seconds: float) -> None:
        """Sweeps at once, and then every `seconds`, for ever."""
        while True:
            for part in (
                self.enqueue_neglected,
                self._listening.match,
                self.start_stopped,
                self.remove_unwanted,
                self._backups.tidy_backups,
                self._buckets.look_after_buckets,
                self._buckets.remove_unwanted_buckets,
            ):
                await _attempted(part(), part.__name__)
            await asyncio.sleep(seconds)

    async def enqueue_neglected(self) -> None:
        """Enters every deployment and tenant with due work that no entry waits for."""
        async with self._database.service() as connection:
            neglected: list[Subject] = [
                *await operation_store.neglected_deployments(connection),
                *await tombstone_store.neglected(connection),
            ]
            if neglected:
                await self._queue.enqueue_all(connection, neglected)

    async def start_stopped(self) -> None:
        """Starts every database that should run and does not; those that sleep should not."""
        async with self._database.service() as connection:
            wanted = await resource_store.awake_databases(connection)
        for deployment in wanted:
            await _attempted(self._start(deployment.deployment_id), "start")

    async def _start(self, deployment_id: DeploymentId) -> None:
        if await self._driver.exists(deployment_id) is not None:
            return
        async with self._locks.hold(deployment_id, LOCK_PATIENCE):
            # Under the lock it is as it says: whoever puts it to sleep writes that down in the end.
            async with self._database.service() as connection:
                awake = await resource_store.awake_databases(connection, deployment_id)
            for deployment in awake:
                await self._waking.start(deployment)
                structlog.get_logger().info("database started", deployment_id=deployment_id)

    async def remove_unwanted(self) -> None:
        """Removes every server whose deployment is unknown, deleted or given up.

        Where nothing is to be removed it is reported alone. The rows are read after the servers
        were found, and again under the lock: a deployment's row is always there before its server.
        """
        for deployment_id in await self._driver.found():
            if await self._is_wanted(deployment_id):
                continue
            if self._removes:
                await _attempted(self._remove(deployment_id), "remove")
            else:
                structlog.get_logger().warning("unwanted server left", deployment_id=deployment_id)

    async def _remove(self, deployment_id: DeploymentId) -> None:
        async with self._locks.hold(deployment_id, LOCK_PATIENCE):
            if not await self._is_wanted(deployment_id):
                await self._driver.destroy(deployment_id)
                structlog.get_logger().warning(
                    "unwanted server removed", deployment_id=deployment_id
                )

    async def _is_wanted(self, deployment_id: DeploymentId) -> bool:
        async with self._database.service() as connection:
            deployment = await store.get_deployment(connection, deployment_id)
        return deployment is not None and deployment.state not in _GONE


async def _attempted(attempt: Awaitable[None], what: str) -> None:
    """Awaits `attempt`; what fails now is tried again by the next sweep."""
    try:
        await attempt
    except (BulkheadError, DriverError, OSError) as error:
        structlog.get_logger().warning("sweep failed", what=what, error=type(error).__name__)
