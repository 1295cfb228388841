"""Deployments to which nothing is vended for a while, whatever is lent to them."""

from typing import Protocol

from services.credentials import binding_store as store
from services.shared.errors import NotFoundError
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Database


class Owners(Protocol):
    """auth: whose deployments are, those too that are going."""

    async def owner(self, deployment: DeploymentId) -> TenantId | None:
        """Returns whose the deployment is or was; None for nobody's.

        Raises:
            UnavailableError: that cannot be found out now.
        """
        ...


class Suspensions:
    """Begins and ends them; the next vend heeds either."""

    def __init__(self, database: Database, owners: Owners) -> None:
        self._database = database
        self._owners = owners

    async def suspend(self, tenant: TenantId, deployment: DeploymentId) -> None:
        """Lets nothing be vended to the deployment, also if nothing was ever lent to it.

        Raises:
            NotFoundError: it is another tenant's, or nobody's (P-41).
        """
        await self._check(tenant, deployment)
        async with self._database.tenant(tenant) as db:
            await store.suspend_deployment(db, tenant, deployment)

    async def resume(self, tenant: TenantId, deployment: DeploymentId) -> None:
        """Lets be vended to the deployment again what is lent to it.

        Raises:
            NotFoundError: it is another tenant's, or nobody's (P-41).
        """
        await self._check(tenant, deployment)
        async with self._database.tenant(tenant) as db:
            await store.resume_deployment(db, tenant, deployment)

    async def _check(self, tenant: TenantId, deployment: DeploymentId) -> None:
        if await self._owners.owner(deployment) != tenant:
            raise NotFoundError("deployment")
