"""Tenants over the wire."""

from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.rpc.messages import (
    MOST_NAME,
    PLAN_VALUES,
    effect_message,
    read_plan,
    read_request_id,
    tenant_message,
    timestamp,
    timestamp_if,
)
from services.auth.rpc.part import Part
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.principal import current_caller, current_principal


class TenantsRpc(Part):
    """Tenants: made, read, moved to another plan, closed, erased."""

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

    async def ChangePlan(
        self, request: pb2.ChangePlanRequest, context: Any
    ) -> pb2.ChangePlanResponse:
        if request.plan == pb2.PLAN_UNSPECIFIED:
            raise InvalidFieldError("plan", "must be named; use FREE, PRO or SCALE")
        tenant, effect = await self._service.tenants.change_plan(
            current_principal().tenant, read_plan(request.plan)
        )
        return pb2.ChangePlanResponse(tenant=tenant_message(tenant), effect=effect_message(effect))

    async def CloseTenant(
        self, request: pb2.CloseTenantRequest, context: Any
    ) -> pb2.CloseTenantResponse:
        revoked, effect, job = await self._service.tenants.close(
            current_principal(), current_caller().peer
        )
        return pb2.CloseTenantResponse(
            revoked_keys=revoked,
            effect=effect_message(effect),
            job_key_id=job.key_id,
            job_key=job.key,
            job_key_expire_time=timestamp_if(job.expires_at),
        )

    async def EraseTenant(
        self, request: pb2.EraseTenantRequest, context: Any
    ) -> pb2.EraseTenantResponse:
        erased = await self._service.erasure.erase(current_principal())
        return pb2.EraseTenantResponse(
            erase_time=timestamp(erased.erased_at),
            keys=erased.keys,
            deployments=erased.deployments,
            connections=erased.connections,
            audit_events=erased.audit_events,
        )
