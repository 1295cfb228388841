"""Puts databases to sleep that nobody uses (P-12), and measures those that are awake (P-03)."""

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta

import structlog

from services.provisioner import resource_store, store
from services.provisioner.domain import Deployment, DeploymentState, ResourceKind, ResourceState
from services.provisioner.drivers.protocol import DatabaseDriver, DriverError, Measured
from services.provisioner.ports import Locks
from services.provisioner.uses import Uses
from services.shared.errors import BulkheadError
from services.shared.ids import DeploymentId
from services.shared.postgres import Database

# Whoever works on the deployment for longer uses it.
_LOCK_PATIENCE = timedelta(seconds=1)
_AT_ONCE = 4
# So often in its idle time a database is measured, which costs a connection to it.
_PARTS_OF_IDLE_TIME = 10


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was last seen of a database, when, and since when it has not been used."""

    measured: Measured
    at: float
    unused_since: float


class Sleeping:
    """Looks at every database that is awake, from time to time.

    How long one is unused is known by this process alone: after a restart it begins anew. One that
    may be idle for long is measured seldom, at most `most` seconds apart, and sleeps so much later.
    """

    def __init__(
        self, database: Database, locks: Locks, driver: DatabaseDriver, uses: Uses, most: float
    ) -> None:
        self._database = database
        self._locks = locks
        self._driver = driver
        self._uses = uses
        self._most = most
        self._seen: dict[DeploymentId, _Seen] = {}
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def run(self, seconds: float) -> None:
        """Looks every `seconds`, for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.look()
            except (BulkheadError, OSError) as error:
                structlog.get_logger().warning("not looked", error=type(error).__name__)

    async def look(self) -> None:
        """Measures every database that is awake and due, and ends those that nobody uses.

        Raises:
            UnavailableError: the rows cannot be read.
        """
        async with self._database.service() as connection:
            awake = await resource_store.awake_databases(connection)
        ids = frozenset(deployment.deployment_id for deployment in awake)
        self._seen = {one: seen for one, seen in self._seen.items() if one in ids}
        self._uses.forget_all_but(ids)
        await asyncio.gather(*(self._attempt(one) for one in awake if self._is_due(one)))

    def _is_due(self, deployment: Deployment) -> bool:
        seen = self._seen.get(deployment.deployment_id)
        part = deployment.idle_timeout.total_seconds() / _PARTS_OF_IDLE_TIME
        pause = min(part or self._most, self._most)
        return seen is None or time.monotonic() - seen.at >= pause

    async def _attempt(self, deployment: Deployment) -> None:
        """What fails now is tried again the next time."""
        async with self._turns:
            try:
                await self._look_at(deployment)
            except (BulkheadError, DriverError, OSError) as error:
                structlog.get_logger().info(
                    "not measured, or not put to sleep",
                    deployment_id=deployment.deployment_id,
                    error=type(error).__name__,
                )

    async def _look_at(self, deployment: Deployment) -> None:
        if await self._is_unused(deployment):
            async with self._locks.hold(deployment.deployment_id, _LOCK_PATIENCE):
                with self._uses.ending(deployment.deployment_id):
                    await self._put_to_sleep(deployment.deployment_id)

    async def _put_to_sleep(self, deployment_id: DeploymentId) -> None:
        """Ends the server, unless it has come into use; the caller holds the lock."""
        async with self._database.service() as connection:
            deployment = await store.get_deployment(connection, deployment_id)
        if deployment is None or deployment.state is not DeploymentState.READY:
            return
        if not await self._is_unused(deployment):
            return
        await self._driver.sleep(deployment_id)
        # Not before: what is written down as awake and is not is started again.
        async with self._database.service() as connection:
            await resource_store.set_state(
                connection, deployment_id, ResourceKind.DATABASE, ResourceState.SLEEPING
            )
        structlog.get_logger().info("database sleeps", deployment_id=deployment_id)

    async def _is_unused(self, deployment: Deployment) -> bool:
        """Measures; returns whether nobody has used the database for its idle time."""
        deployment_id = deployment.deployment_id
        measured = await self._driver.measure(deployment_id)
        if measured is None:
            return False
        seen, now = self._seen.get(deployment_id), time.monotonic()
        await self._write_down(deployment_id, seen, measured)
        used = seen is None or measured.busy or measured.statements != seen.measured.statements
        since = now if seen is None or used else seen.unused_since
        self._seen[deployment_id] = _Seen(measured, now, since)
        idle = now - max(since, self._uses.last(deployment_id))
        return timedelta(0) < deployment.idle_timeout <= timedelta(seconds=idle)

    async def _write_down(
        self, deployment_id: DeploymentId, seen: _Seen | None, measured: Measured
    ) -> None:
        """Writes how much is used, when that is new."""
        new = (measured.used_bytes, measured.over_quota)
        if seen is not None and new == (seen.measured.used_bytes, seen.measured.over_quota):
            return
        async with self._database.service() as connection:
            await resource_store.set_measured(connection, deployment_id, *new)
