"""What auth does for tenants."""

from services.auth import ending_store, store
from services.auth.domain import (
    JOB_SCOPES,
    TENANT_SCOPES,
    Effect,
    IssuedKey,
    JobLifetimes,
    NewKey,
    Tenant,
)
from services.auth.effects import Effects
from services.auth.minting import Mint, replayed, write_key
from services.auth.revocation_store import announce_revocation
from services.shared.clock import Clock
from services.shared.ids import TenantId, new_tenant_id, random_text
from services.shared.postgres import Database
from services.shared.principal import KeyKind, Plan, Principal


class Tenants:
    """Tenants: made, read, moved to another plan, closed."""

    def __init__(
        self,
        database: Database,
        mint: Mint,
        effects: Effects,
        clock: Clock,
        lifetimes: JobLifetimes,
    ) -> None:
        self._database = database
        self._mint = mint
        self._effects = effects
        self._clock = clock
        self._lifetimes = lifetimes

    async def create(
        self, operator: Principal, request_id: str, name: str, plan: Plan
    ) -> tuple[Tenant, IssuedKey]:
        """Returns the tenant and its first key; the same request again creates nothing new.

        Raises:
            AlreadyExistsError: the request was made before with other content, or its key is in
                use already and so cannot be shown again.
        """
        issued, key = self._mint.key(
            KeyKind.TENANT,
            None,
            TENANT_SCOPES,
            operator.key_id,
            f"create/{request_id}",
            "first key",
        )
        async with self._database.service() as connection:
            await store.insert_tenant(
                connection, new_tenant_id(), name, plan, operator.key_id, request_id
            )
            tenant = await store.tenant_of_request(connection, operator.key_id, request_id)
            if (tenant.name, tenant.plan) != (name, plan):
                raise replayed("this request_id created another tenant")
            return tenant, await write_key(connection, tenant.tenant_id, issued, key)

    async def get(self, tenant_id: TenantId) -> Tenant:
        """Returns the tenant."""
        async with self._database.tenant(tenant_id) as connection:
            return await store.get_tenant(connection, tenant_id)

    async def change_plan(self, tenant_id: TenantId, plan: Plan) -> tuple[Tenant, Effect]:
        """Moves the tenant to the plan; returns once every replica counts by it.

        Raises:
            UnavailableError: done, but not known to hold everywhere yet.
        """
        async with self._database.tenant(tenant_id) as connection:
            await store.lock_tenant(connection, tenant_id)
            key_ids = await store.change_plan(connection, tenant_id, plan)
            tenant = await store.get_tenant(connection, tenant_id)
            sequence = await announce_revocation(connection, key_ids)
        return tenant, await self._effects.of(sequence)

    async def close(self, caller: Principal, peer: str) -> tuple[int, Effect, IssuedKey]:
        """Ends every key of the tenant; returns how many were valid, the effect, and a job's key.

        The job's key that is presented works on: whoever lost the answer repeats with it.

        Raises:
            UnavailableError: done, but not known to hold everywhere yet.
        """
        issued, key = self._job_key(caller, peer)
        async with self._database.tenant(caller.tenant) as connection:
            sequence = await store.lock_tenant(connection, caller.tenant)
            ending = await ending_store.lock_keys_of_tenant(
                connection, caller.tenant, caller.key_id
            )
            if ending.key_ids:
                sequence, _ = await ending_store.end_keys(connection, caller.tenant, ending.key_ids)
            await store.close_tenant(connection, caller.tenant, sequence)
            issued = await write_key(connection, caller.tenant, issued, key)
        return ending.valid, await self._effects.of(sequence or 0), issued

    def _job_key(self, caller: Principal, peer: str) -> tuple[IssuedKey, NewKey]:
        return self._mint.key(
            KeyKind.JOB,
            None,
            JOB_SCOPES,
            caller.key_id,
            f"close/{random_text()}",
            "close the tenant",
            bound_peer=peer,
            expires_at=self._clock() + self._lifetimes.closing,
        )
