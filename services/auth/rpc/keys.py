"""Keys over the wire."""

from datetime import timedelta
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.domain import OwnedKind, id_of
from services.auth.rpc.messages import (
    KIND_VALUES,
    MOST_NAME,
    effect_message,
    issued_message,
    key_message,
    read_digest,
    read_duration,
    read_owned,
    read_request_id,
    read_time,
    resolution_message,
    timestamp,
    timestamp_if,
)
from services.auth.rpc.part import Part
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.ids import KeyId
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import current_caller, current_principal

_MOST_SCOPES = 32
_MOST_GRACE = timedelta(days=7)
_MOST_DIGESTS = 256


class KeysRpc(Part):
    """Keys: issued, rotated, revoked, listed, resolved, lent to jobs."""

    async def IssueKey(self, request: pb2.IssueKeyRequest, context: Any) -> pb2.IssueKeyResponse:
        if len(request.scopes) > _MOST_SCOPES:
            raise InvalidFieldError("scopes", f"must be at most {_MOST_SCOPES}")
        owned = read_owned(request)
        if len(owned) > 1:
            raise InvalidFieldError("connection_id", "must not be named together with a deployment")
        issued = await self._service.keys.issue(
            current_principal(),
            read_request_id(request.request_id),
            owned[0] if owned else None,
            request.scopes,
            text("name", request.name, least=0, most=MOST_NAME),
            read_time("expire_time", request.expire_time)
            if request.HasField("expire_time")
            else None,
        )
        return issued_message(issued)

    async def RotateKey(self, request: pb2.RotateKeyRequest, context: Any) -> pb2.RotateKeyResponse:
        rotated, effect = await self._service.endings.rotate(
            current_principal(),
            read_request_id(request.request_id),
            KeyId(text("key_id", request.key_id, most=MOST_NAME)),
            read_duration("grace_period", request.grace_period, _MOST_GRACE),
        )
        issued = rotated.issued
        return pb2.RotateKeyResponse(
            key_id=issued.key_id,
            key=issued.key,
            kind=KIND_VALUES[issued.kind],
            deployment_id=id_of(OwnedKind.DEPLOYMENT, issued.owned) or "",
            connection_id=id_of(OwnedKind.CONNECTION, issued.owned) or "",
            scopes=sorted(issued.scopes),
            expire_time=timestamp_if(issued.expires_at),
            old_key_expire_time=timestamp(rotated.old_expires_at),
            effect=effect_message(effect),
        )

    async def RevokeKey(self, request: pb2.RevokeKeyRequest, context: Any) -> pb2.RevokeKeyResponse:
        key_id = KeyId(text("key_id", request.key_id, most=MOST_NAME))
        revoked_at, effect = await self._service.endings.revoke(current_principal().tenant, key_id)
        return pb2.RevokeKeyResponse(
            key_id=key_id, revoke_time=timestamp(revoked_at), effect=effect_message(effect)
        )

    async def ListKeys(self, request: pb2.ListKeysRequest, context: Any) -> pb2.ListKeysResponse:
        tenant_id = current_principal().tenant
        size = page_size(request.page_size)
        # Another filter is another list.
        list_name = f"keys {request.deployment_id} {request.connection_id}"
        keys = await self._service.keys.page(
            tenant_id,
            read_owned(request),
            page_position(list_name, tenant_id, request.page_token),
            size + 1,
        )
        positions = [(key.created_at, key.key_id) for key in keys]
        return pb2.ListKeysResponse(
            keys=[key_message(key) for key in keys[:size]],
            next_page_token=next_page_token(list_name, tenant_id, positions, size),
        )

    async def ResolveKeys(
        self, request: pb2.ResolveKeysRequest, context: Any
    ) -> pb2.ResolveKeysResponse:
        if not 1 <= len(request.digests) <= _MOST_DIGESTS:
            raise InvalidFieldError("digests", f"must be 1 to {_MOST_DIGESTS}")
        digests = [read_digest("digests", digest) for digest in request.digests]
        sequence, principals = await self._service.keys.resolve(digests)
        return pb2.ResolveKeysResponse(
            sequence=sequence,
            resolutions=[resolution_message(principal) for principal in principals],
        )

    async def Delegate(self, request: pb2.DelegateRequest, context: Any) -> pb2.DelegateResponse:
        caller = current_caller()
        issued = await self._service.keys.delegate(
            current_principal(),
            caller.peer,
            text("purpose", request.purpose, most=MOST_NAME),
            request.scopes,
        )
        return pb2.DelegateResponse(
            key_id=issued.key_id, key=issued.key, expire_time=timestamp_if(issued.expires_at)
        )
