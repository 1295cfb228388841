"""What a tenant, or a deployment itself, can learn of deployments and operations."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from services.provisioner import operation_store, resource_store, store
from services.provisioner.changes import Changes
from services.provisioner.domain import Deployment, Described, Operation
from services.shared.deadline import time_remaining
from services.shared.errors import NotFoundError
from services.shared.ids import DeploymentId, OperationId, TenantId
from services.shared.postgres import Connection, Database

# Kept back of a caller's deadline for the answer's way home.
_TRIM_SECONDS = 0.1


class DeploymentService:
    """Reads, and waits for operations."""

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

    async def describe(self, deployment: Deployment) -> Described:
        """Returns the deployment with what it is made of and what is done with it."""
        async with self._database.tenant(deployment.tenant_id) as connection:
            (described,) = await _described(connection, [deployment])
        return described

    async def list(
        self, tenant: TenantId, before: tuple[datetime, str] | None, most: int
    ) -> Sequence[Described]:
        """Returns at most `most` deployments of the tenant that are not deleted, newest first."""
        async with self._database.tenant(tenant) as connection:
            found = await store.list_deployments(connection, tenant, before, most)
            return await _described(connection, found)

    async def get_operation(self, tenant: TenantId, operation_id: OperationId) -> Operation:
        """Returns the tenant's operation.

        Raises:
            NotFoundError: it has none of that id.
        """
        async with self._database.tenant(tenant) as connection:
            operation = await operation_store.get(connection, operation_id)
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


async def _described(
    connection: Connection, deployments: Sequence[Deployment]
) -> Sequence[Described]:
    ids = [deployment.deployment_id for deployment in deployments]
    resources = await resource_store.list_of(connection, ids)
    operations = await operation_store.last_of(connection, ids)
    return [
        Described(
            deployment,
            resources[deployment.deployment_id],
            operations.get(deployment.deployment_id),
        )
        for deployment in deployments
    ]


async def _comes(change: asyncio.Event) -> bool:
    """Waits for `change`; returns whether it came before the caller's time was up."""
    remaining = time_remaining()
    try:
        async with asyncio.timeout(None if remaining is None else remaining - _TRIM_SECONDS):
            await change.wait()
    except TimeoutError:
        return False
    return True
