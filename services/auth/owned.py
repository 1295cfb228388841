"""What auth does with deployments and connections: it knows whose they are."""

from collections.abc import Sequence

from services.auth import ending_store, owned_store, store
from services.auth.domain import Effect, Owned
from services.auth.effects import Effects
from services.shared.ids import TenantId
from services.shared.postgres import Connection, Database


class OwnedIds:
    """Ids of deployments and connections, each bound to its tenant for good."""

    def __init__(self, database: Database, effects: Effects) -> None:
        self._database = database
        self._effects = effects

    async def register(self, tenant_id: TenantId, owned: Owned) -> None:
        """Binds the id to the tenant.

        Raises:
            NotFoundError: it is another tenant's or retired, or the tenant is closed.
        """
        async with self._database.tenant(tenant_id) as connection:
            await store.hold_tenant(connection, tenant_id)
            await owned_store.register(connection, tenant_id, owned)

    async def retire(self, tenant_id: TenantId, owned: Owned) -> tuple[int, Effect | None]:
        """Revokes every key that opens it, for good.

        Returns how many were valid, and the effect; None when there never was a key.

        Raises:
            UnavailableError: done, but not known to hold everywhere yet.
        """
        async with self._database.tenant(tenant_id) as connection:
            valid, sequence = await _retire(connection, tenant_id, owned)
        return valid, None if sequence is None else await self._effects.of(sequence)

    async def verify(self, tenant_id: TenantId, owned: Owned) -> None:
        """Returns when it is the tenant's.

        Raises:
            NotFoundError: it is not, or was retired.
        """
        async with self._database.tenant(tenant_id) as connection:
            await owned_store.verify(connection, tenant_id, owned)

    async def tenants_of(self, deployments: Sequence[str]) -> list[TenantId | None]:
        """Returns whose the deployments are, in order, retired ones too; None: nobody's.

        Across the wall: a service asks that was called with a key that opens nothing for it.
        """
        async with self._database.service() as connection:
            return await owned_store.tenants_of(connection, deployments)


async def _retire(
    connection: Connection, tenant_id: TenantId, owned: Owned
) -> tuple[int, int | None]:
    before = await owned_store.retire(connection, tenant_id, owned)
    ending = await ending_store.lock_keys_of(connection, tenant_id, owned)
    if not ending.key_ids:
        return 0, before
    sequence, _ = await ending_store.end_keys(connection, tenant_id, ending.key_ids)
    await owned_store.write_retired_sequence(connection, tenant_id, owned, sequence)
    return ending.valid, sequence
