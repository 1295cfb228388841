"""Erasing what auth keeps of a closed tenant (P-39)."""

from services.auth import ending_store
from services.auth import erasure_store as store
from services.auth.effects import Effects
from services.auth.erasure_store import Tombstone
from services.auth.revocation_store import announce_revocation
from services.shared.clock import utc_now
from services.shared.errors import FailedPreconditionError, NotFoundError, Reason
from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Connection, Database
from services.shared.principal import Principal


class Erasure:
    """Erases closed tenants, each in one transaction."""

    def __init__(self, database: Database, effects: Effects) -> None:
        self._database = database
        self._effects = effects

    async def erase(self, caller: Principal) -> Tombstone:
        """Returns what was erased, once no replica takes a key of the tenant but the caller's.

        Asked again with the same key: the same.

        Raises:
            FailedPreconditionError: the tenant is not closed.
            UnavailableError: done, but not known to hold everywhere yet.
        """
        async with self._database.tenant(caller.tenant) as connection:
            tombstone = await _erased(connection, caller.tenant, caller.key_id)
        await self._effects.of(tombstone.sequence or 0)
        return tombstone


async def _erased(connection: Connection, tenant_id: TenantId, asking: KeyId) -> Tombstone:
    closed = await store.lock_tenant(connection, tenant_id)
    if closed is None:
        return _known(await store.find(connection, tenant_id))
    if not closed:
        raise FailedPreconditionError(
            "the tenant is not closed: close it first", Reason.OPERATION_FAILED
        )
    # Keys of jobs may live on; no other key was made since the tenant was closed.
    ending = await ending_store.lock_keys_of_tenant(connection, tenant_id, asking)
    await store.erase(connection, tenant_id, asking)
    # Last, since revocations wait for each other from here to the commit.
    sequence = await announce_revocation(connection, ending.key_ids) if ending.key_ids else 0
    ending_store.tell_ended(ending.key_ids, utc_now())
    return _known(await store.write_sequence(connection, tenant_id, sequence))


def _known(tombstone: Tombstone | None) -> Tombstone:
    if tombstone is None:
        raise NotFoundError("tenant")
    return tombstone
