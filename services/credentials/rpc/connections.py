"""Connections over the wire."""

from typing import Any

from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.domain import ConnectionKind
from services.credentials.rpc.messages import (
    REVOCATIONS,
    caller_key,
    connection_message,
    provider_message,
    read_client,
    read_connection_id,
    read_name,
    read_request_id,
    read_state,
    read_time,
)
from services.credentials.rpc.part import Part
from services.credentials.wanted import (
    MOST_USERNAME_LENGTH,
    Credential,
    KeptSecret,
    NewConnection,
    OwnClient,
    Update,
    read_scopes,
    read_secret,
)
from services.shared.errors import InvalidFieldError
from services.shared.paging import next_page_token, page_position, page_size
from services.shared.principal import current_principal


class ConnectionsRpc(Part):
    """What a tenant has at providers."""

    async def ListProviders(
        self, request: pb2.ListProvidersRequest, context: Any
    ) -> pb2.ListProvidersResponse:
        operators = self._service.operators
        return pb2.ListProvidersResponse(
            providers=[
                provider_message(provider, operator_client=operators.get(provider.name) is not None)
                for provider in self._service.catalogue.all()
            ]
        )

    async def CreateConnection(
        self, request: pb2.CreateConnectionRequest, context: Any
    ) -> pb2.CreateConnectionResponse:
        credential = _credential(request)
        if credential is None:
            raise InvalidFieldError("credential", "must be given")
        new = NewConnection(
            request_id=read_request_id(request.request_id),
            provider=request.provider,
            name=read_name(request.name),
            exclusive=request.exclusive,
            parameters=dict(request.parameters),
            credential=credential,
        )
        tenant = current_principal().tenant
        made = await self._service.connections.create(tenant, caller_key(), new)
        return pb2.CreateConnectionResponse(connection=connection_message(made))

    async def GetConnection(
        self, request: pb2.GetConnectionRequest, context: Any
    ) -> pb2.GetConnectionResponse:
        named = read_connection_id(request.connection_id)
        connection = await self._service.connections.get(current_principal().tenant, named)
        return pb2.GetConnectionResponse(connection=connection_message(connection))

    async def ListConnections(
        self, request: pb2.ListConnectionsRequest, context: Any
    ) -> pb2.ListConnectionsResponse:
        tenant, state = current_principal().tenant, read_state(request.state)
        size = page_size(request.page_size)
        # Another filter is another list.
        list_name = f"connections {request.state}"
        found = await self._service.connections.page(
            tenant, state, page_position(list_name, tenant, request.page_token), size + 1
        )
        positions = [(connection.created_at, connection.connection_id) for connection in found]
        return pb2.ListConnectionsResponse(
            connections=[connection_message(connection) for connection in found[:size]],
            next_page_token=next_page_token(list_name, tenant, positions, size),
        )

    async def UpdateConnection(
        self, request: pb2.UpdateConnectionRequest, context: Any
    ) -> pb2.UpdateConnectionResponse:
        update = Update(
            name=read_name(request.name) if request.HasField("name") else None,
            exclusive=request.exclusive if request.HasField("exclusive") else None,
            credential=_credential(request),
        )
        named = read_connection_id(request.connection_id)
        changed = await self._service.connections.update(current_principal().tenant, named, update)
        return pb2.UpdateConnectionResponse(connection=connection_message(changed))

    async def DeleteConnection(
        self, request: pb2.DeleteConnectionRequest, context: Any
    ) -> pb2.DeleteConnectionResponse:
        deleted = await self._service.deletion.delete(
            current_principal().tenant, caller_key(), read_connection_id(request.connection_id)
        )
        return pb2.DeleteConnectionResponse(
            revocation=REVOCATIONS[deleted.revoked.revocation],
            advice=deleted.revoked.advice,
            bindings_ended=deleted.bindings_ended,
        )


def _credential(
    request: pb2.CreateConnectionRequest | pb2.UpdateConnectionRequest,
) -> Credential | None:
    match request.WhichOneof("credential"):
        case "static_token":
            return _static_token(request.static_token)
        case "api_key":
            return _api_key(request.api_key)
        case "client_credentials":
            return _client_credentials(request.client_credentials)
        case _:
            return None


def _static_token(given: pb2.StaticToken) -> KeptSecret:
    expires_at = None
    if given.HasField("expire_time"):
        expires_at = read_time("static_token.expire_time", given.expire_time)
    return KeptSecret(
        kind=ConnectionKind.STATIC_TOKEN,
        secret=read_secret("static_token.token", given.token),
        expires_at=expires_at,
    )


def _api_key(given: pb2.ApiKey) -> KeptSecret:
    return KeptSecret(
        kind=ConnectionKind.API_KEY,
        secret=read_secret("api_key.key", given.key),
        username=read_secret(
            "api_key.username", given.username, least=0, most=MOST_USERNAME_LENGTH
        ),
    )


def _client_credentials(given: pb2.ClientCredentials) -> OwnClient:
    prefix = "client_credentials."
    return OwnClient(
        client=read_client(prefix, given.client_id, given.client_secret),
        scopes=read_scopes(f"{prefix}scopes", given.scopes),
    )
