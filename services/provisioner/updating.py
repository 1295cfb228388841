"""Changing what may change of a deployment."""

from dataclasses import dataclass
from datetime import timedelta

from services.provisioner import resource_store, store
from services.provisioner.domain import LOCK_PATIENCE, Deployment, DeploymentState, not_ready
from services.provisioner.drivers.protocol import DatabaseDriver, DriverError, Measured
from services.provisioner.ports import Locks
from services.shared.errors import FailedPreconditionError, NotFoundError, Reason
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Database

_GOING = frozenset({DeploymentState.DELETING, DeploymentState.FAILED})


@dataclass(frozen=True, slots=True)
class Terms:
    """How much databases may hold and how long they are awake unused, if nobody says otherwise."""

    storage_bytes_usual: int
    storage_bytes_most: int
    idle_usual: timedelta


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be different; None: stays."""

    storage_bytes: int | None = None
    idle_timeout: timedelta | None = None


class Updating:
    """Changes deployments, their databases awake or not."""

    def __init__(self, database: Database, locks: Locks, driver: DatabaseDriver) -> None:
        self._database = database
        self._locks = locks
        self._driver = driver

    async def update(
        self, tenant: TenantId, deployment_id: DeploymentId, change: Change
    ) -> Deployment:
        """Returns the deployment as it is now; the change is in force.

        Raises:
            NotFoundError: the tenant has no such deployment.
            FailedPreconditionError: it has no database, or is going.
            UnavailableError: the quota may not be in force yet; asking again is safe, and the next
                start of the database makes up for it.
        """
        if change.storage_bytes is None:
            return await self._write(tenant, deployment_id, change)
        await self._check(tenant, deployment_id)
        # Nobody starts the database by what the row said before.
        async with self._locks.hold(deployment_id, LOCK_PATIENCE, caller=tenant):
            deployment = await self._write(tenant, deployment_id, change)
            try:
                await self._driver.set_quota(deployment_id, deployment.storage_bytes)
                measured = await self._driver.measure(deployment_id)
            except DriverError as error:
                raise not_ready() from error
            await self._show(tenant, deployment_id, measured)
        return deployment

    async def _show(
        self, tenant: TenantId, deployment_id: DeploymentId, measured: Measured | None
    ) -> None:
        """Writes whether the database is over its quota by now; one that sleeps is asked later."""
        if measured is not None:
            async with self._database.tenant(tenant) as connection:
                await resource_store.set_measured(
                    connection, deployment_id, measured.used_bytes, measured.over_quota
                )

    async def _check(self, tenant: TenantId, deployment_id: DeploymentId) -> None:
        """Says what is wrong with the request before anything is waited for."""
        async with self._database.tenant(tenant) as connection:
            _changeable(await store.get_deployment(connection, deployment_id))

    async def _write(
        self, tenant: TenantId, deployment_id: DeploymentId, change: Change
    ) -> Deployment:
        async with self._database.tenant(tenant) as connection:
            _changeable(await store.get_deployment(connection, deployment_id, lock=True))
            return await store.change(
                connection, deployment_id, change.storage_bytes, change.idle_timeout
            )


def _changeable(deployment: Deployment | None) -> None:
    if deployment is None or deployment.state is DeploymentState.DELETED:
        raise NotFoundError("deployment")
    if deployment.state in _GOING:
        raise FailedPreconditionError("the deployment is going", Reason.OPERATION_FAILED)
    if not deployment.database:
        raise FailedPreconditionError(
            "the deployment has no database", Reason.RESOURCE_NOT_DECLARED
        )
