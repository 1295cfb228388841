"""Authorizations over the wire."""

import re
from typing import Any

from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.authorizations import Asker
from services.credentials.completion import Origin
from services.credentials.domain import OAuthClient
from services.credentials.rpc.messages import (
    caller_key,
    connection_message,
    read_client,
    read_connection_id,
    read_name,
    read_request_id,
    timestamp_if,
    trace_id,
)
from services.credentials.rpc.part import Part
from services.credentials.wanted import (
    NewAuthorization,
    Renewal,
    read_redirect_url,
    read_scopes,
    read_secret,
)
from services.shared.errors import InvalidFieldError, NotFoundError
from services.shared.principal import current_caller, current_principal

_MOST_CODE_LENGTH = 4_096
# 256 random bits in base64url.
_STATE = re.compile(r"[A-Za-z0-9_-]{43}")


class AuthorizationsRpc(Part):
    """OAuth's authorization code flow: begun with a key, ended with a state."""

    async def StartAuthorization(
        self, request: pb2.StartAuthorizationRequest, context: Any
    ) -> pb2.StartAuthorizationResponse:
        principal = current_principal()
        asker = Asker(principal.tenant, principal.key_id, caller_key())
        wanted = _renewal(request) if request.connection_id else _new(request)
        started = await self._service.authorizations.start(asker, wanted)
        return pb2.StartAuthorizationResponse(
            connection=connection_message(started.connection),
            authorization_url=started.url,
            expire_time=timestamp_if(started.expires_at),
        )

    async def CompleteAuthorization(
        self, request: pb2.CompleteAuthorizationRequest, context: Any
    ) -> pb2.CompleteAuthorizationResponse:
        principal = current_principal()
        code = read_secret("code", request.code, most=_MOST_CODE_LENGTH)
        completed = await self._service.completion.complete(
            principal.tenant, principal.key_id, _state(request.state), code
        )
        return pb2.CompleteAuthorizationResponse(connection=connection_message(completed))

    async def DescribeAuthorization(
        self, request: pb2.DescribeAuthorizationRequest, context: Any
    ) -> pb2.DescribeAuthorizationResponse:
        asked = await self._service.completion.describe(_state(request.state))
        return pb2.DescribeAuthorizationResponse(
            provider_title=asked.provider_title,
            connection_name=asked.connection_name,
            beneficiary=asked.beneficiary,
            scopes=asked.scopes,
        )

    async def FinishAuthorization(
        self, request: pb2.FinishAuthorizationRequest, context: Any
    ) -> pb2.FinishAuthorizationResponse:
        code = read_secret("code", request.code, least=0, most=_MOST_CODE_LENGTH)
        finished = await self._service.completion.finish(_origin(), _state(request.state), code)
        return pb2.FinishAuthorizationResponse(
            provider_title=finished.provider_title, connection_name=finished.connection_name
        )


def _origin() -> Origin:
    return Origin(current_caller().peer, trace_id())


def _state(value: str) -> str:
    if _STATE.fullmatch(value) is None:
        raise NotFoundError("authorization")
    return value


def _new(request: pb2.StartAuthorizationRequest) -> NewAuthorization:
    return NewAuthorization(
        request_id=read_request_id(request.request_id),
        provider=request.provider,
        name=read_name(request.name),
        exclusive=request.exclusive,
        parameters=dict(request.parameters),
        scopes=read_scopes("scopes", request.scopes),
        client=_client(request),
        redirect_url=_redirect_url(request),
    )


def _renewal(request: pb2.StartAuthorizationRequest) -> Renewal:
    for field in ("provider", "name", "parameters", "exclusive"):
        if getattr(request, field):
            raise InvalidFieldError(field, "stays as the connection has it")
    return Renewal(
        request_id=read_request_id(request.request_id),
        connection_id=read_connection_id(request.connection_id),
        scopes=read_scopes("scopes", request.scopes),
        client=_client(request),
        redirect_url=_redirect_url(request),
    )


def _client(request: pb2.StartAuthorizationRequest) -> OAuthClient | None:
    if not request.client_id:
        if request.client_secret:
            raise InvalidFieldError("client_id", "must be given with the secret")
        return None
    return read_client("", request.client_id, request.client_secret, public=True)


def _redirect_url(request: pb2.StartAuthorizationRequest) -> str:
    return read_redirect_url(request.redirect_url) if request.redirect_url else ""
