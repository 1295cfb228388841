"""Messages of credentials.proto from domain values, and domain values from fields."""

from collections.abc import Mapping
from datetime import UTC, datetime

from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry import trace

from services.credentials.domain import (
    MOST_NAME_LENGTH,
    MOST_REQUEST_ID_LENGTH,
    Binding,
    Connection,
    ConnectionKind,
    ConnectionState,
    OAuthClient,
    Revocation,
    StateReason,
    binding_id,
    connection_id,
    deployment_id,
)
from services.credentials.ports import Bearer
from services.credentials.providers.catalogue import Provider
from services.credentials.wanted import MOST_CLIENT_ID_LENGTH, read_secret
from services.shared.errors import InvalidFieldError, NotFoundError, UnauthenticatedError
from services.shared.fields import text
from services.shared.ids import BindingId, ConnectionId, DeploymentId
from services.shared.principal import current_caller

KINDS: Mapping[ConnectionKind, "pb2.ConnectionKind.ValueType"] = {
    ConnectionKind.STATIC_TOKEN: pb2.CONNECTION_KIND_STATIC_TOKEN,
    ConnectionKind.API_KEY: pb2.CONNECTION_KIND_API_KEY,
    ConnectionKind.CLIENT_CREDENTIALS: pb2.CONNECTION_KIND_CLIENT_CREDENTIALS,
    ConnectionKind.AUTHORIZATION_CODE: pb2.CONNECTION_KIND_AUTHORIZATION_CODE,
}
STATES: Mapping[ConnectionState, "pb2.ConnectionState.ValueType"] = {
    ConnectionState.AUTHORIZING: pb2.CONNECTION_STATE_AUTHORIZING,
    ConnectionState.ACTIVE: pb2.CONNECTION_STATE_ACTIVE,
    ConnectionState.NEEDS_REAUTHORIZATION: pb2.CONNECTION_STATE_NEEDS_REAUTHORIZATION,
    ConnectionState.DELETING: pb2.CONNECTION_STATE_DELETING,
}
REASONS: Mapping[StateReason, "pb2.StateReason.ValueType"] = {
    StateReason.GRANT_REFUSED: pb2.STATE_REASON_GRANT_REFUSED,
    StateReason.CLIENT_REFUSED: pb2.STATE_REASON_CLIENT_REFUSED,
    StateReason.REFRESH_LOST: pb2.STATE_REASON_REFRESH_LOST,
    StateReason.EXPIRED: pb2.STATE_REASON_EXPIRED,
    StateReason.UNREADABLE: pb2.STATE_REASON_UNREADABLE,
}
REVOCATIONS: Mapping[Revocation, "pb2.Revocation.ValueType"] = {
    Revocation.REVOKED: pb2.REVOCATION_REVOKED,
    Revocation.NOTHING: pb2.REVOCATION_NOTHING,
    Revocation.UNSUPPORTED: pb2.REVOCATION_UNSUPPORTED,
    Revocation.FAILED: pb2.REVOCATION_FAILED,
}


def read_request_id(value: str) -> str:
    """Returns the request's id.

    Raises:
        InvalidFieldError: it is empty, too long or not printable.
    """
    return text("request_id", value, most=MOST_REQUEST_ID_LENGTH)


def read_name(value: str) -> str:
    """Returns a connection's name.

    Raises:
        InvalidFieldError: it is empty, too long or not printable.
    """
    return text("name", value, most=MOST_NAME_LENGTH)


def read_connection_id(value: str) -> ConnectionId:
    """Returns the connection that is named.

    Raises:
        NotFoundError: there can be none of that name.
    """
    named = connection_id(value)
    if named is None:
        raise NotFoundError("connection")
    return named


def read_binding_id(value: str) -> BindingId:
    """Returns the binding that is named.

    Raises:
        NotFoundError: there can be none of that name.
    """
    named = binding_id(value)
    if named is None:
        raise NotFoundError("binding")
    return named


def read_deployment_id(value: str) -> DeploymentId:
    """Returns the deployment that is named.

    Raises:
        NotFoundError: there can be none of that name.
    """
    named = deployment_id(value)
    if named is None:
        raise NotFoundError("deployment")
    return named


def read_time(field: str, value: Timestamp) -> datetime:
    """Returns the time, to the microsecond.

    Raises:
        InvalidFieldError: it is none.
    """
    try:
        return value.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise InvalidFieldError(field, "is not a time") from None


def read_state(value: int) -> ConnectionState | None:
    """Returns the state; None when none is given.

    Raises:
        InvalidFieldError: it is none that is known.
    """
    if value == pb2.CONNECTION_STATE_UNSPECIFIED:
        return None
    for state, number in STATES.items():
        if number == value:
            return state
    raise InvalidFieldError("state", "is not a state of connections")


def read_client(
    prefix: str, client_id: str, client_secret: str, *, public: bool = False
) -> OAuthClient:
    """Returns the OAuth client that a caller names as their own; a `public` one has no secret.

    Raises:
        InvalidFieldError: id or secret cannot be sent to a provider.
    """
    return OAuthClient(
        read_secret(f"{prefix}client_id", client_id, most=MOST_CLIENT_ID_LENGTH),
        read_secret(f"{prefix}client_secret", client_secret, least=0 if public else 1),
    )


def caller_key() -> Bearer:
    """Returns the presented key, to be shown to auth.

    Raises:
        UnauthenticatedError: there is none.
    """
    key = current_caller().bearer
    if key is None:
        raise UnauthenticatedError
    return Bearer(key)


def trace_id() -> str:
    """Returns the W3C trace id of the call being served, 32 hex digits; empty without one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def timestamp_if(at: datetime | None) -> Timestamp | None:
    """Returns the time as a message; None for none."""
    if at is None:
        return None
    message = Timestamp()
    message.FromDatetime(at)
    return message


def connection_message(connection: Connection) -> pb2.Connection:
    """Returns the connection as a message."""
    reason = connection.state_reason
    return pb2.Connection(
        connection_id=connection.connection_id,
        name=connection.name,
        provider=connection.provider,
        kind=KINDS[connection.kind],
        state=STATES[connection.state],
        state_reason=pb2.STATE_REASON_UNSPECIFIED if reason is None else REASONS[reason],
        state_time=timestamp_if(connection.state_at),
        exclusive=connection.exclusive,
        scopes=connection.scopes or (),
        parameters=connection.parameters,
        create_time=timestamp_if(connection.created_at),
        last_vend_time=timestamp_if(connection.last_vended_at),
        token_expire_time=timestamp_if(connection.token_expires_at),
        client_id=connection.client_id or "",
        authorization_expire_time=timestamp_if(connection.authorization_expires_at),
    )


def binding_message(binding: Binding) -> pb2.Binding:
    """Returns the binding as a message."""
    return pb2.Binding(
        binding_id=binding.binding_id,
        deployment_id=binding.deployment_id,
        connection_id=binding.connection_id,
        alias=binding.alias,
        provider=binding.provider,
        scope_ceiling=binding.scope_ceiling,
        expire_time=timestamp_if(binding.expires_at),
        create_time=timestamp_if(binding.created_at),
        state=STATES[binding.state],
    )


def provider_message(provider: Provider, *, operator_client: bool) -> pb2.Provider:
    """Returns the entry of the catalogue as a message."""
    oauth = provider.oauth
    return pb2.Provider(
        name=provider.name,
        title=provider.title,
        kinds=[KINDS[kind] for kind in provider.kinds],
        api_base_url=provider.api_base_url,
        parameters=sorted(provider.parameters),
        source=provider.source,
        revocable=oauth is not None and bool(oauth.revocable_tokens),
        operator_client=operator_client,
        default_scopes=() if oauth is None else oauth.default_scopes,
    )
