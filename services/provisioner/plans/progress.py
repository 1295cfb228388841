"""How far a deployment's resources are, written down as the steps are taken."""

from services.provisioner import resource_store
from services.provisioner.domain import Deployment, ResourceKind, ResourceState
from services.shared.postgres import Database


class Progress:
    """Writes the state of resources; one that was destroyed meanwhile stays so."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ready(self, deployment: Deployment, *kinds: ResourceKind) -> None:
        """Writes that the resources are as they should be."""
        await self.put(deployment, ResourceState.READY, *kinds)

    async def put(self, deployment: Deployment, state: ResourceState, *kinds: ResourceKind) -> None:
        """Writes how the resources are."""
        async with self._database.tenant(deployment.tenant_id) as connection:
            await resource_store.set_states(connection, deployment.deployment_id, kinds, state)
