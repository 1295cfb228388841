"""Databases that run when they are wanted (P-12)."""

import asyncio
from contextvars import Context
from datetime import timedelta

import structlog

from services.provisioner import resource_store, store
from services.provisioner.domain import (
    LOCK_PATIENCE,
    DatabaseAddress,
    Deployment,
    DeploymentState,
    ResourceKind,
    ResourceState,
    not_ready,
    suspended,
)
from services.provisioner.drivers.protocol import DatabaseDriver, DriverError, WantedDatabase
from services.provisioner.ports import Locks
from services.provisioner.uses import Uses
from services.shared.deadline import time_remaining
from services.shared.errors import FailedPreconditionError, NotFoundError, Reason
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Database

# A server that recovers from a crash takes its time; who asks for it waits no longer than this.
_PATIENCE = timedelta(seconds=25)
# Kept back of a caller's deadline for the answer's way home.
_TRIM_SECONDS = 0.1
_LOST = "the database's files are gone"


class Waking:
    """Starts databases, each once however many ask for it."""

    def __init__(
        self, database: Database, locks: Locks, driver: DatabaseDriver, uses: Uses
    ) -> None:
        self._database = database
        self._locks = locks
        self._driver = driver
        self._uses = uses
        self._under_way: dict[DeploymentId, asyncio.Task[DatabaseAddress]] = {}

    async def make(self, deployment: Deployment) -> DatabaseAddress:
        """Returns where the database runs, made if it was not; the caller holds the lock.

        Raises:
            DriverError: it does not run.
        """
        address = await self._driver.ensure(_wanted(deployment))
        self._uses.note(deployment.deployment_id)
        if address.port != deployment.database_port:
            async with self._database.service() as connection:
                await store.set_database_port(connection, deployment.deployment_id, address.port)
        return address

    async def start(self, deployment: Deployment) -> DatabaseAddress:
        """Returns where the database runs, which was made before; the caller holds the lock.

        It is written down whether it does. One whose data are lost is not made anew: that would
        hide the loss.

        Raises:
            DriverError: it does not run.
        """
        deployment_id = deployment.deployment_id
        if not await self._driver.kept(deployment_id):
            await self._write(deployment_id, ResourceState.LOST, _LOST)
            raise DriverError(_LOST)
        # Before it is so: what should run and does not is found by the sweep.
        await self._write(deployment_id, ResourceState.READY)
        try:
            return await self.make(deployment)
        except DriverError as error:
            await self._write(deployment_id, ResourceState.DEGRADED, str(error))
            raise

    async def wake(self, deployment_id: DeploymentId) -> DatabaseAddress:
        """Returns where the database runs, which had to be made before.

        Raises:
            NotFoundError: there is no such deployment, or it is deleted.
            FailedPreconditionError: it is suspended, has no database, or could not be made.
            UnavailableError: it is not ready, or its database does not start in time.
        """
        async with self._database.service() as connection:
            deployment = await store.get_deployment(connection, deployment_id)
        return await self.woken(deployment)

    async def woken(self, deployment: Deployment | None) -> DatabaseAddress:
        """Does the same for a deployment that was just read."""
        deployment = usable(deployment)
        self._uses.note(deployment.deployment_id)
        if not self._uses.is_ending(deployment.deployment_id):
            address = await self.awake(deployment.deployment_id)
            if address is not None:
                return address
        try:
            async with asyncio.timeout(_within_deadline(_PATIENCE.total_seconds())):
                return await asyncio.shield(self._flight(deployment))
        except (DriverError, TimeoutError) as error:
            raise not_ready() from error

    async def awake(self, deployment_id: DeploymentId) -> DatabaseAddress | None:
        """Returns where the database runs if it does; starts nothing.

        Raises:
            UnavailableError: that cannot be told now.
        """
        try:
            return await self._driver.exists(deployment_id)
        except DriverError as error:
            raise not_ready() from error

    def _flight(self, deployment: Deployment) -> "asyncio.Task[DatabaseAddress]":
        """Returns the one wake of the deployment; it goes on though its callers have left."""
        deployment_id, tenant = deployment.deployment_id, deployment.tenant_id
        flight = self._under_way.get(deployment_id)
        if flight is None:
            # Not in the time that its first caller has, but in its own.
            flight = asyncio.get_running_loop().create_task(
                self._wake(deployment_id, tenant), context=Context()
            )
            self._under_way[deployment_id] = flight
            flight.add_done_callback(lambda done: self._land(deployment_id, done))
        return flight

    def _land(self, deployment_id: DeploymentId, flight: "asyncio.Task[DatabaseAddress]") -> None:
        del self._under_way[deployment_id]
        if not flight.cancelled() and (error := flight.exception()) is not None:
            structlog.get_logger().warning(
                "not woken", deployment_id=deployment_id, error=type(error).__name__
            )

    async def _wake(self, deployment_id: DeploymentId, tenant: TenantId) -> DatabaseAddress:
        async with self._locks.hold(deployment_id, LOCK_PATIENCE, caller=tenant):
            async with self._database.service() as connection:
                deployment = usable(await store.get_deployment(connection, deployment_id))
            return await self.start(deployment)

    async def _write(
        self, deployment_id: DeploymentId, state: ResourceState, reason: str = ""
    ) -> None:
        async with self._database.service() as connection:
            await resource_store.set_state(
                connection, deployment_id, ResourceKind.DATABASE, state, reason
            )


def _wanted(deployment: Deployment) -> WantedDatabase:
    return WantedDatabase(
        deployment.deployment_id,
        deployment.generation,
        deployment.open_generations,
        deployment.storage_bytes,
        deployment.database_port,
    )


def usable(deployment: Deployment | None) -> Deployment:
    """Returns a deployment whose database may run.

    Raises:
        NotFoundError: there is none, or it is deleted.
        FailedPreconditionError: it is suspended, has no database, or could not be made.
        UnavailableError: it is not ready.
    """
    if deployment is None or deployment.state is DeploymentState.DELETED:
        raise NotFoundError("deployment")
    if not deployment.database:
        raise FailedPreconditionError(
            "the deployment has no database", Reason.RESOURCE_NOT_DECLARED
        )
    if deployment.state is DeploymentState.FAILED:
        raise FailedPreconditionError("the deployment could not be made", Reason.OPERATION_FAILED)
    if deployment.state is DeploymentState.SUSPENDED:
        raise suspended()
    if deployment.state is not DeploymentState.READY:
        raise not_ready()
    return deployment


def _within_deadline(seconds: float) -> float:
    remaining = time_remaining()
    return seconds if remaining is None else min(seconds, max(0.0, remaining - _TRIM_SECONDS))
