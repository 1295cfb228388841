"""What auth does for tenants."""

from services.auth import store
from services.auth.domain import TENANT_SCOPES, IssuedKey, Tenant
from services.auth.minting import Mint, replayed, write_key
from services.shared.ids import TenantId, new_tenant_id
from services.shared.postgres import Database
from services.shared.principal import KeyKind, Plan, Principal


class Tenants:
    """Tenants: made and read."""

    def __init__(self, database: Database, mint: Mint) -> None:
        self._database = database
        self._mint = mint

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
