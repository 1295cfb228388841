"""What auth does with deployments: it knows whose they are."""

from services.auth import deployment_store, ending_store, store
from services.auth.domain import Effect
from services.auth.effects import Effects
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection, Database


class Deployments:
    """Ids of deployments, each bound to its tenant for good."""

    def __init__(self, database: Database, effects: Effects) -> None:
        self._database = database
        self._effects = effects

    async def register(self, tenant_id: TenantId, deployment_id: DeploymentId) -> None:
        """Binds the deployment's id to the tenant.

        Raises:
            NotFoundError: it is another tenant's or retired, or the tenant is closed.
        """
        async with self._database.tenant(tenant_id) as connection:
            await store.hold_tenant(connection, tenant_id)
            await deployment_store.register_deployment(connection, tenant_id, deployment_id)

    async def retire(
        self, tenant_id: TenantId, deployment_id: DeploymentId
    ) -> tuple[int, Effect | None]:
        """Revokes every key of the deployment, for good.

        Returns how many were valid, and the effect; None when there never was a key.

        Raises:
            UnavailableError: done, but not known to hold everywhere yet.
        """
        async with self._database.tenant(tenant_id) as connection:
            valid, sequence = await _retire(connection, tenant_id, deployment_id)
        return valid, None if sequence is None else await self._effects.of(sequence)

    async def verify(self, tenant_id: TenantId, deployment_id: DeploymentId) -> None:
        """Returns when the deployment is the tenant's."""
        async with self._database.tenant(tenant_id) as connection:
            await deployment_store.verify_deployment(connection, tenant_id, deployment_id)


async def _retire(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> tuple[int, int | None]:
    before = await deployment_store.retire_deployment(connection, tenant_id, deployment_id)
    ending = await ending_store.lock_keys_of_deployment(connection, tenant_id, deployment_id)
    if not ending.key_ids:
        return 0, before
    sequence, _ = await ending_store.end_keys(connection, tenant_id, ending.key_ids)
    await deployment_store.write_retired_sequence(connection, tenant_id, deployment_id, sequence)
    return ending.valid, sequence
