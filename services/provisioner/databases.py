"""The way into the deployments' databases."""

import asyncio
from datetime import timedelta

from services.provisioner.deployments import DeploymentService
from services.provisioner.domain import (
    LOCK_PATIENCE,
    DatabaseAddress,
    DatabaseConnection,
    DatabaseRole,
    Deployment,
    DeploymentState,
    not_ready,
    suspended,
)
from services.provisioner.drivers.protocol import DatabaseDriver, DriverError
from services.provisioner.plans.making import Making
from services.provisioner.ports import Locks
from services.shared.deadline import time_remaining
from services.shared.errors import FailedPreconditionError, NotFoundError, Reason
from services.shared.ids import DeploymentId, TenantId

# Kept back of a caller's deadline for the answer's way home.
_TRIM_SECONDS = 0.1


class DatabaseService:
    """The way into the deployments' databases."""

    def __init__(
        self,
        deployments: DeploymentService,
        locks: Locks,
        making: Making,
        driver: DatabaseDriver,
        database_name: str,
    ) -> None:
        self._deployments = deployments
        self._locks = locks
        self._making = making
        self._driver = driver
        self._database_name = database_name

    async def connection(
        self, tenant: TenantId, deployment_id: DeploymentId, role: DatabaseRole
    ) -> DatabaseConnection:
        """Returns how to reach the deployment's database, which runs then.

        Raises:
            NotFoundError: the tenant has no such deployment, or it is deleted.
            FailedPreconditionError: it has no database, or could not be made.
            UnavailableError: it is not ready.
        """
        deployment = await self._deployments.get(tenant, deployment_id)
        _check_usable(deployment)
        address = await self._driver.exists(deployment_id)
        if address is None:
            address = await self._recover(tenant, deployment_id)
        return DatabaseConnection(
            address=address,
            database=self._database_name,
            user=role,
            password=self._driver.password(deployment_id, role, deployment.generation),
        )

    async def _recover(self, tenant: TenantId, deployment_id: DeploymentId) -> DatabaseAddress:
        """Starts the server; of many who ask at once, the first does it for all."""
        seconds = _within_deadline(LOCK_PATIENCE.total_seconds())
        try:
            async with (
                asyncio.timeout(seconds),
                self._locks.hold(deployment_id, timedelta(seconds=seconds)),
            ):
                running = await self._driver.exists(deployment_id)
                if running is not None:
                    return running
                deployment = await self._deployments.get(tenant, deployment_id)
                _check_usable(deployment)
                return await self._making.ensure_database(deployment)
        except (DriverError, TimeoutError) as error:
            raise not_ready() from error


def _check_usable(deployment: Deployment) -> None:
    if deployment.state is DeploymentState.DELETED:
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


def _within_deadline(seconds: float) -> float:
    remaining = time_remaining()
    return seconds if remaining is None else min(seconds, max(0.0, remaining - _TRIM_SECONDS))
