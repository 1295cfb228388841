"""What auth does with deployments: it knows whose they are."""

from services.auth import store
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Database


class Deployments:
    """Ids of deployments, each bound to its tenant for good."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def register(self, tenant_id: TenantId, deployment_id: DeploymentId) -> None:
        """Binds the deployment's id to the tenant."""
        async with self._database.tenant(tenant_id) as connection:
            await store.register_deployment(connection, tenant_id, deployment_id)

    async def retire(self, tenant_id: TenantId, deployment_id: DeploymentId) -> int:
        """Revokes every key of the deployment, for good; returns how many were valid."""
        async with self._database.tenant(tenant_id) as connection:
            return await store.retire_deployment(connection, tenant_id, deployment_id)

    async def verify(self, tenant_id: TenantId, deployment_id: DeploymentId) -> None:
        """Returns when the deployment is the tenant's."""
        async with self._database.tenant(tenant_id) as connection:
            await store.verify_deployment(connection, tenant_id, deployment_id)
