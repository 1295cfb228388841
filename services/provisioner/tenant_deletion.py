"""Deleting a tenant: written down with all that is its, cut off at once, then removed (P-39)."""

from collections.abc import Sequence

from services.provisioner import deletion_store, tombstone_store
from services.provisioner.certificate_tokens import CertificateTokens, digest, is_of
from services.provisioner.deletion_ports import TenantKeys
from services.provisioner.deletion_store import Child, Ending
from services.provisioner.operations import Operations
from services.provisioner.ports import Bearer, Queue
from services.provisioner.tenant_deleting import TenantDeleting
from services.provisioner.tombstone_store import Tombstone
from services.shared.errors import AlreadyExistsError, NotFoundError, Reason
from services.shared.ids import TenantId, new_operation_id
from services.shared.postgres import Connection, Database

_WHY = "the tenant was deleted before it was done"


class TenantDeletion:
    """Ends tenants."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        operations: Operations,
        keys: TenantKeys,
        deleting: TenantDeleting,
        tokens: CertificateTokens,
    ) -> None:
        self._database = database
        self._queue = queue
        self._operations = operations
        self._keys = keys
        self._deleting = deleting
        self._tokens = tokens

    async def delete(
        self, tenant: TenantId, caller: Bearer, token: str | None
    ) -> tuple[Tombstone, str]:
        """Returns the tenant's tombstone, and the token that opens its certificate.

        No key, session or route of the tenant is alive then. What was written down goes on by
        itself, whether the caller hears of it or not.

        Args:
            tenant: who is deleted.
            caller: a key of it.
            token: what the caller chose to open the certificate with; None: one is derived.

        Raises:
            AlreadyExistsError: the deletion was begun before, with another token.
            UnavailableError: something may still live; asking again is safe.
        """
        if await self._found(tenant) is None:
            job = await self._keys.delegate(caller, f"delete {tenant}")
            await self._begin(tenant, job, token)
        found = await self._found(tenant)
        if found is None:
            raise NotFoundError("tenant")
        tombstone, kept = found
        opening = token or self._tokens.of(tombstone.operation_id)
        if not is_of(opening, kept):
            raise AlreadyExistsError(
                "the deletion was begun with another certificate_token", Reason.REQUEST_REPLAYED
            )
        await self._deleting.cut_off(tenant)
        return tombstone, opening

    async def _found(self, tenant: TenantId) -> tuple[Tombstone, bytes] | None:
        async with self._database.tenant(tenant) as connection:
            return await tombstone_store.find(connection, tenant)

    async def _begin(self, tenant: TenantId, job: Bearer, token: str | None) -> None:
        """Writes the end of the tenant and of all its deployments at once, unless another did."""
        async with self._database.tenant(tenant) as connection:
            await tombstone_store.lock_tenant(connection, tenant)
            if await tombstone_store.find(connection, tenant) is not None:
                return
            operation_id = new_operation_id()
            await tombstone_store.insert(
                connection,
                tenant,
                operation_id,
                digest(token or self._tokens.of(operation_id)),
                self._operations.sealed(operation_id, job),
            )
            children = await self._delete_children(connection, tenant, job)
            await self._queue.enqueue_all(
                connection, [tenant, *(each.deployment_id for each in children)]
            )

    async def _delete_children(
        self, connection: Connection, tenant: TenantId, job: Bearer
    ) -> Sequence[Child]:
        children = await deletion_store.lock_children(connection, tenant)
        await deletion_store.end_running_of_tenant(connection, tenant, _WHY)
        endings = [self._ending(child, job) for child in children]
        await deletion_store.delete_children(connection, tenant, endings)
        return children

    def _ending(self, child: Child, job: Bearer) -> Ending:
        operation_id = child.operation_id or new_operation_id()
        return Ending(
            child.deployment_id,
            operation_id,
            self._operations.sealed(operation_id, job),
            digest(self._tokens.of(operation_id)),
        )
