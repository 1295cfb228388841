"""Support keys over the wire."""

from datetime import timedelta
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.authenticator import current_trace_id
from services.auth.rpc.messages import MOST_NAME, read_duration, read_request_id, timestamp_if
from services.auth.rpc.part import Part
from services.auth.support import SupportCall, SupportRequest
from services.auth.support_rules import LEAST_LIFETIME, MOST_LIFETIME
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.ids import TenantId
from services.shared.keyformat import without_keys
from services.shared.principal import current_caller, current_principal

_METHOD = f"{pb2.DESCRIPTOR.services_by_name['AuthService'].full_name}/IssueSupportKey"
_MOST_REASON = 200
_MOST_SCOPES = 32


class SupportRpc(Part):
    """The operator helps a tenant: the one request that names one."""

    async def IssueSupportKey(
        self, request: pb2.IssueSupportKeyRequest, context: Any
    ) -> pb2.IssueSupportKeyResponse:
        call = SupportCall(current_principal(), current_caller().peer, _METHOD, current_trace_id())
        issued = await self._service.support.issue(call, _request(request))
        return pb2.IssueSupportKeyResponse(
            key_id=issued.key_id,
            key=issued.key,
            scopes=sorted(issued.scopes),
            expire_time=timestamp_if(issued.expires_at),
        )


def _request(request: pb2.IssueSupportKeyRequest) -> SupportRequest:
    if len(request.scopes) > _MOST_SCOPES:
        raise InvalidFieldError("scopes", f"must be at most {_MOST_SCOPES}")
    return SupportRequest(
        read_request_id(request.request_id),
        TenantId(text("tenant_id", request.tenant_id, most=MOST_NAME)),
        without_keys(text("reason", request.reason, most=_MOST_REASON)),
        _lifetime(request),
        frozenset(request.scopes),
    )


def _lifetime(request: pb2.IssueSupportKeyRequest) -> timedelta:
    if not request.HasField("lifetime"):
        return MOST_LIFETIME
    lifetime = read_duration("lifetime", request.lifetime, MOST_LIFETIME)
    if lifetime < LEAST_LIFETIME:
        raise InvalidFieldError("lifetime", "must be a second to an hour")
    return lifetime
