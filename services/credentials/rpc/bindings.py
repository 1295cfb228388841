"""Bindings over the wire."""

import re
from typing import Any

from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.bindings import WantedBinding
from services.credentials.rpc.messages import (
    binding_message,
    caller_key,
    read_binding_id,
    read_connection_id,
    read_deployment_id,
    read_time,
)
from services.credentials.rpc.part import Part
from services.credentials.wanted import read_scopes
from services.shared.errors import InvalidFieldError, NotFoundError
from services.shared.ids import DeploymentId
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import KeyKind, Principal, current_principal

_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")


class BindingsRpc(Part):
    """Which connection is lent to which deployment."""

    async def BindConnection(
        self, request: pb2.BindConnectionRequest, context: Any
    ) -> pb2.BindConnectionResponse:
        expires_at = None
        if request.HasField("expire_time"):
            expires_at = read_time("expire_time", request.expire_time)
        wanted = WantedBinding(
            alias=_alias(request.alias),
            scope_ceiling=read_scopes("scope_ceiling", request.scope_ceiling),
            expires_at=expires_at,
            replace=request.replace,
            deployment_id=read_deployment_id(request.deployment_id),
            connection_id=read_connection_id(request.connection_id),
        )
        tenant = current_principal().tenant
        bound = await self._service.bindings.bind(tenant, caller_key(), wanted)
        return pb2.BindConnectionResponse(binding=binding_message(bound))

    async def UnbindConnection(
        self, request: pb2.UnbindConnectionRequest, context: Any
    ) -> pb2.UnbindConnectionResponse:
        named = read_binding_id(request.binding_id)
        await self._service.bindings.unbind(current_principal().tenant, named)
        return pb2.UnbindConnectionResponse()

    async def ListBindings(
        self, request: pb2.ListBindingsRequest, context: Any
    ) -> pb2.ListBindingsResponse:
        principal = current_principal()
        deployment = _seen_deployment(principal, request.deployment_id)
        connection = read_connection_id(request.connection_id) if request.connection_id else None
        size = page_size(request.page_size)
        # Another filter, or another reader, is another list.
        list_name, owner = f"bindings {deployment} {connection}", principal.tenant
        found = await self._service.bindings.page(
            owner,
            deployment,
            connection,
            page_position(list_name, owner, request.page_token),
            size + 1,
        )
        positions = [(binding.created_at, binding.binding_id) for binding in found]
        return pb2.ListBindingsResponse(
            bindings=[binding_message(binding) for binding in found[:size]],
            next_page_token=next_page_token(list_name, owner, positions, size),
        )

    async def ReleaseDeployment(
        self, request: pb2.ReleaseDeploymentRequest, context: Any
    ) -> pb2.ReleaseDeploymentResponse:
        named = read_deployment_id(request.deployment_id)
        ended = await self._service.bindings.release(current_principal().tenant, named)
        return pb2.ReleaseDeploymentResponse(bindings_ended=ended)

    async def SuspendDeployment(
        self, request: pb2.SuspendDeploymentRequest, context: Any
    ) -> pb2.SuspendDeploymentResponse:
        named = read_deployment_id(request.deployment_id)
        await self._service.suspensions.suspend(current_principal().tenant, named)
        return pb2.SuspendDeploymentResponse()

    async def ResumeDeployment(
        self, request: pb2.ResumeDeploymentRequest, context: Any
    ) -> pb2.ResumeDeploymentResponse:
        named = read_deployment_id(request.deployment_id)
        await self._service.suspensions.resume(current_principal().tenant, named)
        return pb2.ResumeDeploymentResponse()


def _alias(value: str) -> str:
    if value and _ALIAS.fullmatch(value) is None:
        raise InvalidFieldError("alias", "must be 1 to 63 of a-z, 0-9, `-` and `_`, a letter first")
    return value


def _seen_deployment(principal: Principal, named: str) -> DeploymentId | None:
    """Returns whose bindings are listed; None: all of the tenant's.

    Raises:
        NotFoundError: a deployment's key names another than its own (P-41).
    """
    if principal.kind is not KeyKind.DEPLOYMENT:
        return read_deployment_id(named) if named else None
    own = principal.deployment_id
    if own is None or named not in ("", own):
        raise NotFoundError("deployment")
    return own
