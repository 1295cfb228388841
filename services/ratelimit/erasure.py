"""Erasing what is counted of deployments that are gone (P-39).

In this order: Postgres, which keeps every replica from writing it down anew; what this process
remembers; Valkey. A tenant's rows go last, since they say which of its counters are in Valkey.
"""

from collections.abc import Collection
from typing import Protocol

from services.ratelimit import erasure_store as store
from services.ratelimit.erasure_store import Tombstone
from services.ratelimit.memory import Memory
from services.shared.errors import NotFoundError
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Database


class Owners(Protocol):
    """Knows whose deployments are, those too that are going."""

    async def owner(self, deployment_id: DeploymentId) -> TenantId | None:
        """Returns whose the deployment is or was; None for nobody's."""
        ...


class Erasable(Protocol):
    """Counters that can be erased."""

    async def erase(self, deployments: Collection[DeploymentId]) -> None:
        """Erases every counter of the deployments."""
        ...


class Erasure:
    """Erases the counters of a deployment, or of all that a tenant has."""

    def __init__(
        self, database: Database, counters: Erasable, memory: Memory, owners: Owners
    ) -> None:
        self._database = database
        self._counters = counters
        self._memory = memory
        self._owners = owners

    async def release(self, tenant: TenantId, deployment: DeploymentId) -> None:
        """Returns when nothing is counted of the deployment any more; again, it does the same.

        Raises:
            NotFoundError: it is another tenant's, or nobody's (P-41).
            UnavailableError: a store or auth is away; asking again goes on from there.
        """
        if await self._owners.owner(deployment) != tenant:
            raise NotFoundError("deployment")
        async with self._database.tenant(tenant) as connection:
            await store.release(connection, tenant, deployment)
        self._memory.erase([deployment])
        await self._counters.erase([deployment])

    async def erase(self, tenant: TenantId) -> Tombstone:
        """Returns when nothing is counted of the tenant any more; again, it answers the same.

        Raises:
            UnavailableError: a store is away; asking again goes on from there.
        """
        async with self._database.tenant(tenant) as connection:
            if (done := await store.begin(connection, tenant)) is not None:
                return done
            counted = await store.counted(connection, tenant)
        deployments = {*counted, *self._memory.deployments_of(tenant)}
        self._memory.erase(deployments)
        await self._counters.erase(deployments)
        async with self._database.tenant(tenant) as connection:
            return await store.finish(connection, tenant)
