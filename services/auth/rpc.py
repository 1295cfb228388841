"""auth.proto to the domain and back."""

import re
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceServicer
from bulkhead.common.v1 import access_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from services.auth.authenticator import current_trace_id
from services.auth.domain import AuditEvent, IssuedKey, Key, Tenant
from services.auth.service import AuthService
from services.shared.access import PLANS
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.ids import DeploymentId, KeyId
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import (
    KeyKind,
    Plan,
    Principal,
    current_caller,
    current_principal,
)

_AUDIT_LIST = "audit"
_MOST_NAME = 100
_MOST_REQUEST_ID = 64
_MOST_SCOPES = 32
_MOST_DIGESTS = 256
_DIGEST_BYTES = 32
_DEPLOYMENT_ID = re.compile(r"dep_[0-9a-z]{26}")

_KINDS: Mapping[KeyKind, "access_pb2.KeyKind.ValueType"] = {
    KeyKind.OPERATOR: access_pb2.KEY_KIND_OPERATOR,
    KeyKind.TENANT: access_pb2.KEY_KIND_TENANT,
    KeyKind.DEPLOYMENT: access_pb2.KEY_KIND_DEPLOYMENT,
    KeyKind.CONNECTION: access_pb2.KEY_KIND_CONNECTION,
    KeyKind.SESSION: access_pb2.KEY_KIND_SESSION,
    KeyKind.JOB: access_pb2.KEY_KIND_JOB,
}
_PLANS: Mapping[Plan, "pb2.Plan.ValueType"] = {
    Plan.FREE: pb2.PLAN_FREE,
    Plan.PRO: pb2.PLAN_PRO,
    Plan.SCALE: pb2.PLAN_SCALE,
}


class AuthRpc(AuthServiceServicer):
    """One method a call: read the request, ask the service, write the answer."""

    def __init__(self, service: AuthService) -> None:
        self._service = service

    async def CreateTenant(
        self, request: pb2.CreateTenantRequest, context: Any
    ) -> pb2.CreateTenantResponse:
        tenant, issued = await self._service.create_tenant(
            current_principal(),
            _request_id(request.request_id),
            text("name", request.name, most=_MOST_NAME),
            _plan(request.plan),
        )
        return pb2.CreateTenantResponse(
            tenant_id=tenant.tenant_id,
            name=tenant.name,
            plan=_PLANS[tenant.plan],
            key_id=issued.key_id,
            key=issued.key,
        )

    async def GetTenant(self, request: pb2.GetTenantRequest, context: Any) -> pb2.GetTenantResponse:
        tenant = await self._service.get_tenant(current_principal().tenant)
        return pb2.GetTenantResponse(tenant=_tenant(tenant))

    async def IssueKey(self, request: pb2.IssueKeyRequest, context: Any) -> pb2.IssueKeyResponse:
        if len(request.scopes) > _MOST_SCOPES:
            raise InvalidFieldError("scopes", f"must be at most {_MOST_SCOPES}")
        issued = await self._service.issue_key(
            current_principal(),
            _request_id(request.request_id),
            _deployment_id(request.deployment_id),
            request.scopes,
            text("name", request.name, least=0, most=_MOST_NAME),
        )
        return _issued(issued)

    async def RevokeKey(self, request: pb2.RevokeKeyRequest, context: Any) -> pb2.RevokeKeyResponse:
        key_id = KeyId(text("key_id", request.key_id, most=_MOST_NAME))
        revoked_at = await self._service.revoke_key(current_principal().tenant, key_id)
        return pb2.RevokeKeyResponse(key_id=key_id, revoke_time=_timestamp(revoked_at))

    async def ListKeys(self, request: pb2.ListKeysRequest, context: Any) -> pb2.ListKeysResponse:
        tenant_id = current_principal().tenant
        size = page_size(request.page_size)
        # Another filter is another list.
        list_name = f"keys {request.deployment_id}"
        keys = await self._service.list_keys(
            tenant_id,
            _deployment_id(request.deployment_id),
            page_position(list_name, tenant_id, request.page_token),
            size + 1,
        )
        positions = [(key.created_at, key.key_id) for key in keys]
        return pb2.ListKeysResponse(
            keys=[_key(key) for key in keys[:size]],
            next_page_token=next_page_token(list_name, tenant_id, positions, size),
        )

    async def ListAuditEvents(
        self, request: pb2.ListAuditEventsRequest, context: Any
    ) -> pb2.ListAuditEventsResponse:
        tenant_id = current_principal().tenant
        size = page_size(request.page_size)
        events = await self._service.list_audit_events(
            tenant_id, page_position(_AUDIT_LIST, tenant_id, request.page_token), size + 1
        )
        positions = [(event.at, event.event_id) for event in events]
        return pb2.ListAuditEventsResponse(
            events=[_audit_event(event) for event in events[:size]],
            next_page_token=next_page_token(_AUDIT_LIST, tenant_id, positions, size),
        )

    async def ResolveKeys(
        self, request: pb2.ResolveKeysRequest, context: Any
    ) -> pb2.ResolveKeysResponse:
        if not 1 <= len(request.digests) <= _MOST_DIGESTS:
            raise InvalidFieldError("digests", f"must be 1 to {_MOST_DIGESTS}")
        if any(len(digest) != _DIGEST_BYTES for digest in request.digests):
            raise InvalidFieldError("digests", f"must have {_DIGEST_BYTES} bytes each")
        sequence, principals = await self._service.resolve_keys(request.digests)
        return pb2.ResolveKeysResponse(
            sequence=sequence, resolutions=[_resolution(principal) for principal in principals]
        )

    async def WatchRevocations(
        self, request: pb2.WatchRevocationsRequest, context: Any
    ) -> AsyncIterator[pb2.WatchRevocationsResponse]:
        async for revocation in self._service.watch_revocations():
            yield pb2.WatchRevocationsResponse(
                sequence=revocation.sequence, key_ids=revocation.key_ids
            )

    async def Delegate(self, request: pb2.DelegateRequest, context: Any) -> pb2.DelegateResponse:
        caller = current_caller()
        issued = await self._service.delegate(
            current_principal(), caller.peer, text("purpose", request.purpose, most=_MOST_NAME)
        )
        response = pb2.DelegateResponse(key_id=issued.key_id, key=issued.key)
        if issued.expires_at is not None:
            response.expire_time.FromDatetime(issued.expires_at)
        return response

    async def RegisterDeployment(
        self, request: pb2.RegisterDeploymentRequest, context: Any
    ) -> pb2.RegisterDeploymentResponse:
        await self._service.register_deployment(
            current_principal().tenant, _new_deployment_id(request.deployment_id)
        )
        return pb2.RegisterDeploymentResponse()

    async def RetireDeployment(
        self, request: pb2.RetireDeploymentRequest, context: Any
    ) -> pb2.RetireDeploymentResponse:
        revoked = await self._service.retire_deployment(
            current_principal().tenant, _new_deployment_id(request.deployment_id)
        )
        return pb2.RetireDeploymentResponse(revoked_keys=revoked)

    async def VerifyDeployment(
        self, request: pb2.VerifyDeploymentRequest, context: Any
    ) -> pb2.VerifyDeploymentResponse:
        await self._service.verify_deployment(
            current_principal().tenant,
            DeploymentId(text("deployment_id", request.deployment_id, most=_MOST_NAME)),
        )
        return pb2.VerifyDeploymentResponse()

    async def RecordAuditEvent(
        self, request: pb2.RecordAuditEventRequest, context: Any
    ) -> pb2.RecordAuditEventResponse:
        event_id = await self._service.record_audit_event(
            current_principal(),
            text("peer", request.peer, most=_MOST_NAME),
            text("method", request.method, most=200),
            _resources(request.resources),
            current_trace_id(),
        )
        return pb2.RecordAuditEventResponse(event_id=event_id)


def _request_id(value: str) -> str:
    return text("request_id", value, most=_MOST_REQUEST_ID)


def _deployment_id(value: str) -> DeploymentId | None:
    if not value:
        return None
    return DeploymentId(text("deployment_id", value, most=_MOST_NAME))


def _new_deployment_id(value: str) -> DeploymentId:
    if not _DEPLOYMENT_ID.fullmatch(value):
        raise InvalidFieldError("deployment_id", "must be dep_ and 26 base-32 characters")
    return DeploymentId(value)


def _resources(value: Mapping[str, str]) -> Mapping[str, str]:
    if len(value) > _MOST_SCOPES:
        raise InvalidFieldError("resources", f"must be at most {_MOST_SCOPES}")
    return {
        text("resources", kind, most=_MOST_NAME): text(
            "resources", _printable(name), least=0, most=_MOST_NAME
        )
        for kind, name in value.items()
    }


def _printable(value: str) -> str:
    return "".join(character if character.isprintable() else "�" for character in value)


def _plan(value: "pb2.Plan.ValueType") -> Plan:
    try:
        return PLANS[value]
    except KeyError:
        raise InvalidFieldError("plan", "is not a plan; use FREE, PRO or SCALE") from None


def _timestamp(at: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(at)
    return timestamp


def _tenant(tenant: Tenant) -> pb2.Tenant:
    return pb2.Tenant(
        tenant_id=tenant.tenant_id,
        name=tenant.name,
        plan=_PLANS[tenant.plan],
        create_time=_timestamp(tenant.created_at),
    )


def _issued(issued: IssuedKey) -> pb2.IssueKeyResponse:
    return pb2.IssueKeyResponse(
        key_id=issued.key_id,
        key=issued.key,
        kind=_KINDS[issued.kind],
        deployment_id=issued.deployment_id or "",
        scopes=sorted(issued.scopes),
    )


def _key(key: Key) -> pb2.Key:
    return pb2.Key(
        key_id=key.key_id,
        kind=_KINDS[key.kind],
        deployment_id=key.deployment_id or "",
        name=key.name,
        scopes=sorted(key.scopes),
        hint=key.hint,
        create_time=_timestamp(key.created_at),
        revoke_time=_timestamp(key.revoked_at) if key.revoked_at is not None else None,
    )


def _resolution(principal: Principal | None) -> pb2.Resolution:
    if principal is None:
        return pb2.Resolution()
    expires_at = principal.expires_at
    return pb2.Resolution(
        principal=pb2.Principal(
            key_id=principal.key_id,
            kind=_KINDS[principal.kind],
            tenant_id=principal.tenant_id or "",
            deployment_id=principal.deployment_id or "",
            scopes=sorted(principal.scopes),
            plan=_PLANS[principal.plan],
            expire_time=_timestamp(expires_at) if expires_at is not None else None,
            bound_peer=principal.bound_peer or "",
        )
    )


def _audit_event(event: AuditEvent) -> pb2.AuditEvent:
    return pb2.AuditEvent(
        event_id=event.event_id,
        time=_timestamp(event.at),
        key_id=event.key_id,
        peer=event.peer,
        method=event.method,
        resources=dict(event.resources),
        trace_id=event.trace_id,
    )
