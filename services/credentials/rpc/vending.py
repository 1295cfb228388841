"""Vends over the wire."""

from datetime import timedelta
from typing import Any

from bulkhead.common.v1 import error_reason_pb2
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.lending import Asked
from services.credentials.providers.injection import MOST_SECRET_LENGTH
from services.credentials.rpc.messages import trace_id
from services.credentials.rpc.part import Part
from services.credentials.supply import Outcome
from services.credentials.vended import Vended
from services.credentials.vending import Presented
from services.shared.errors import BulkheadError, InvalidFieldError, UnauthenticatedError
from services.shared.fields import text
from services.shared.keyformat import digest, without_keys
from services.shared.principal import current_caller, current_principal

_MOST_ITEMS = 64
_MOST_NAME = 63
_MOST_PURPOSE = 200


class VendingRpc(Part):
    """Tokens: vended, and found again in the audit log."""

    async def Vend(self, request: pb2.VendRequest, context: Any) -> pb2.VendResponse:
        if not 1 <= len(request.items) <= _MOST_ITEMS:
            raise InvalidFieldError("items", f"must be 1 to {_MOST_ITEMS}")
        items = [_asked(f"items[{number}]", item) for number, item in enumerate(request.items)]
        outcomes = await self._service.vending.vend(_presented(), items)
        return pb2.VendResponse(results=[_result(outcome) for outcome in outcomes])

    async def FingerprintToken(
        self, request: pb2.FingerprintTokenRequest, context: Any
    ) -> pb2.FingerprintTokenResponse:
        if not 1 <= len(request.token) <= MOST_SECRET_LENGTH:
            raise InvalidFieldError("token", f"must have 1 to {MOST_SECRET_LENGTH} characters")
        tenant = current_principal().tenant
        return pb2.FingerprintTokenResponse(
            token_fingerprint=await self._service.vending.fingerprint(tenant, request.token)
        )


def _presented() -> Presented:
    caller = current_caller()
    if caller.bearer is None:
        raise UnauthenticatedError
    return Presented(
        principal=current_principal(),
        key_digest=digest(caller.bearer),
        peer=caller.peer,
        trace_id=trace_id(),
    )


def _asked(field: str, item: pb2.VendItem) -> Asked:
    purpose = text(f"{field}.purpose", item.purpose, least=0, most=_MOST_PURPOSE)
    return Asked(
        alias=text(f"{field}.alias", item.alias, least=0, most=_MOST_NAME),
        provider=text(f"{field}.provider", item.provider, least=0, most=_MOST_NAME),
        # The log is for good: a key that was pasted here by mistake is none of it.
        purpose=without_keys(purpose),
    )


def _result(outcome: Outcome) -> pb2.VendResult:
    if isinstance(outcome, BulkheadError):
        return pb2.VendResult(refusal=_refusal(outcome))
    return pb2.VendResult(token=_token(outcome))


def _refusal(error: BulkheadError) -> pb2.VendRefusal:
    reason = error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{error.reason}")
    refusal = pb2.VendRefusal(reason=reason, message=error.message)
    if error.retry_after is not None:
        refusal.retry_after.FromTimedelta(error.retry_after)
    return refusal


def _token(vended: Vended) -> pb2.VendedToken:
    token = pb2.VendedToken(
        token=vended.fresh.token,
        token_type=vended.token_type,
        headers=vended.injected.headers,
        query=vended.injected.query,
        api_base_url=vended.api_base_url,
        scopes=vended.fresh.scopes,
        connection_id=vended.connection_id,
        binding_id=vended.binding_id or "",
        alias=vended.alias,
        provider=vended.provider,
    )
    if vended.expires_at is not None:
        token.expire_time.FromDatetime(vended.expires_at)
    lifetime = vended.lifetime
    if lifetime is not None:
        token.lifetime.FromTimedelta(max(lifetime, timedelta(0)))
    return token
