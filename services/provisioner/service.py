"""The use cases that read: deployments, operations, and the way into a database."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta

from services.provisioner import store
from services.provisioner.changes import Changes
from services.provisioner.domain import (
    LOCK_PATIENCE,
    DatabaseAddress,
    DatabaseConnection,
    DatabaseRole,
    Deployment,
    DeploymentState,
    Operation,
    not_ready,
)
from services.provisioner.drivers.protocol import DatabaseDriver, DriverError
from services.provisioner.ports import Locks
from services.provisioner.steps import Steps
from services.shared.deadline import time_remaining
from services.shared.errors import FailedPreconditionError, NotFoundError, Reason
from services.shared.ids import DeploymentId, OperationId, TenantId
from services.shared.postgres import Database

# Kept back of a caller's deadline for the answer's way home.
_TRIM_SECONDS = 0.1


class DeploymentService:
    """What a tenant, or a deployment itself, can learn."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes

    async def get(self, tenant: TenantId, deployment_id: DeploymentId) -> Deployment:
        """Returns the tenant's deployment.

        Raises:
            NotFoundError: it has none of that id.
        """
        async with self._database.tenant(tenant) as connection:
            deployment = await store.get_deployment(connection, deployment_id)
        if deployment is None:
            raise NotFoundError("deployment")
        return deployment

    async def list(
        self, tenant: TenantId, before: tuple[datetime, str] | None, most: int
    ) -> list[Deployment]:
        """Returns at most `most` deployments of the tenant that are not deleted, newest first."""
        async with self._database.tenant(tenant) as connection:
            return await store.list_deployments(connection, tenant, before, most)

    async def get_operation(self, tenant: TenantId, operation_id: OperationId) -> Operation:
        """Returns the tenant's operation.

        Raises:
            NotFoundError: it has none of that id.
        """
        async with self._database.tenant(tenant) as connection:
            operation = await store.get_operation(connection, operation_id)
        if operation is None:
            raise NotFoundError("operation")
        return operation

    async def wait_operation(
        self, tenant: TenantId, operation_id: OperationId
    ) -> AsyncIterator[Operation]:
        """Yields the operation, then each change, until it is done or the caller's time is up.

        Raises:
            NotFoundError: the tenant has none of that id.
        """
        shown: Operation | None = None
        while True:
            change = self._changes.next
            operation = await self.get_operation(tenant, operation_id)
            if operation != shown:
                yield operation
                shown = operation
            if operation.done or not await _comes(change):
                return


class DatabaseService:
    """The way into the deployments' databases."""

    def __init__(
        self,
        deployments: DeploymentService,
        locks: Locks,
        steps: Steps,
        driver: DatabaseDriver,
        database_name: str,
    ) -> None:
        self._deployments = deployments
        self._locks = locks
        self._steps = steps
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
                return await self._steps.ensure_database(deployment)
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
    if deployment.state is not DeploymentState.READY:
        raise not_ready()


def _within_deadline(seconds: float) -> float:
    remaining = time_remaining()
    return seconds if remaining is None else min(seconds, max(0.0, remaining - _TRIM_SECONDS))


async def _comes(change: asyncio.Event) -> bool:
    """Waits for `change`; returns whether it came before the caller's time was up."""
    remaining = time_remaining()
    try:
        async with asyncio.timeout(None if remaining is None else remaining - _TRIM_SECONDS):
            await change.wait()
    except TimeoutError:
        return False
    return True
