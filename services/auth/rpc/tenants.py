"""Tenants over the wire."""

from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.rpc.messages import (
    MOST_NAME,
    PLAN_VALUES,
    read_plan,
    read_request_id,
    tenant_message,
)
from services.auth.rpc.part import Part
from services.shared.fields import text
from services.shared.principal import current_principal


class TenantsRpc(Part):
    """Tenants: made and read."""

    async def CreateTenant(
        self, request: pb2.CreateTenantRequest, context: Any
    ) -> pb2.CreateTenantResponse:
        tenant, issued = await self._service.tenants.create(
            current_principal(),
            read_request_id(request.request_id),
            text("name", request.name, most=MOST_NAME),
            read_plan(request.plan),
        )
        return pb2.CreateTenantResponse(
            tenant_id=tenant.tenant_id,
            name=tenant.name,
            plan=PLAN_VALUES[tenant.plan],
            key_id=issued.key_id,
            key=issued.key,
        )

    async def GetTenant(self, request: pb2.GetTenantRequest, context: Any) -> pb2.GetTenantResponse:
        tenant = await self._service.tenants.get(current_principal().tenant)
        return pb2.GetTenantResponse(tenant=tenant_message(tenant))
