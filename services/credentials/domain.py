"""Connections, bindings and what providers grant: the types and rules, without any store."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from services.shared.ids import BindingId, ConnectionId, DeploymentId, TenantId

MOST_NAME_LENGTH = 63
MOST_REQUEST_ID_LENGTH = 64
MOST_SCOPES = 100
# What is vended lives at least so long.
LEAST_LIFETIME = timedelta(minutes=1)
_CONNECTION_ID = re.compile(r"con_[0-9a-z]{26}")
_BINDING_ID = re.compile(r"bnd_[0-9a-z]{26}")
_DEPLOYMENT_ID = re.compile(r"dep_[0-9a-z]{26}")


class ConnectionKind(StrEnum):
    """`bulkhead.credentials.v1.ConnectionKind`."""

    STATIC_TOKEN = "static_token"  # noqa: S105 a kind, not a token
    API_KEY = "api_key"
    CLIENT_CREDENTIALS = "client_credentials"
    AUTHORIZATION_CODE = "authorization_code"


class ConnectionState(StrEnum):
    """`bulkhead.credentials.v1.ConnectionState`; who is deleted is shown to no one."""

    AUTHORIZING = "authorizing"
    ACTIVE = "active"
    NEEDS_REAUTHORIZATION = "needs_reauthorization"
    DELETING = "deleting"
    DELETED = "deleted"


GOING = frozenset({ConnectionState.DELETING, ConnectionState.DELETED})


class StateReason(StrEnum):
    """`bulkhead.credentials.v1.StateReason`."""

    GRANT_REFUSED = "grant_refused"
    CLIENT_REFUSED = "client_refused"
    REFRESH_LOST = "refresh_lost"
    EXPIRED = "expired"
    UNREADABLE = "unreadable"


class Revocation(StrEnum):
    """`bulkhead.credentials.v1.Revocation`."""

    REVOKED = "revoked"
    NOTHING = "nothing"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Connection:
    """A grant as it may be shown: without its secrets."""

    connection_id: ConnectionId
    tenant_id: TenantId
    name: str
    provider: str
    kind: ConnectionKind
    exclusive: bool
    state: ConnectionState
    state_reason: StateReason | None
    state_at: datetime
    # None: the provider has not said.
    scopes: tuple[str, ...] | None
    parameters: Mapping[str, str]
    # None: the operator's client.
    client_id: str | None
    created_at: datetime
    generation: int = 1
    # The minute of the last vend.
    last_vended_at: datetime | None = None
    # Of the access token at hand.
    token_expires_at: datetime | None = None
    # Until when a person can allow it; None: nobody is asked.
    authorization_expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Binding:
    """One connection lent to one deployment."""

    binding_id: BindingId
    deployment_id: DeploymentId
    connection_id: ConnectionId
    provider: str
    alias: str
    # Empty: no ceiling.
    scope_ceiling: tuple[str, ...]
    expires_at: datetime | None
    created_at: datetime
    # Of the connection.
    state: ConnectionState


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """With which we speak to a provider's token endpoint."""

    client_id: str
    # Empty for a public client.
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a provider's token endpoint gave (RFC 6749, 5.1)."""

    access_token: str = field(repr=False)
    token_type: str
    # None: it does not expire, or the provider did not say and the catalogue does not know.
    expires_in: timedelta | None
    # None: there is none, or the old one stays.
    refresh_token: str | None = field(repr=False)
    # None: the provider did not say, which means what was asked for.
    scopes: tuple[str, ...] | None


class ProviderError(Exception):
    """A provider did not give what it was asked for. Its text names no secret."""


class GrantRefusedError(ProviderError):
    """The provider said no, for good: what was sent is of no use to it."""

    def __init__(self, reason: StateReason, provider_error: str) -> None:
        super().__init__(f"refused: {provider_error}")
        self.reason = reason
        # The `error` of RFC 6749, 5.2, or the like; printable and short.
        self.provider_error = provider_error


class ProviderAwayError(ProviderError):
    """Nothing was spent: the request did not get there, or was turned away before it was heeded."""

    def __init__(self, message: str, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AnswerLostError(ProviderError):
    """The provider may have spent what was sent, and we do not know what it gave for it."""


def connection_id(value: str) -> ConnectionId | None:
    """Returns `value` as an id when it has the shape of one."""
    return ConnectionId(value) if _CONNECTION_ID.fullmatch(value) else None


def binding_id(value: str) -> BindingId | None:
    """Returns `value` as an id when it has the shape of one."""
    return BindingId(value) if _BINDING_ID.fullmatch(value) else None


def deployment_id(value: str) -> DeploymentId | None:
    """Returns `value` as an id when it has the shape of one."""
    return DeploymentId(value) if _DEPLOYMENT_ID.fullmatch(value) else None


def scope_key(scopes: tuple[str, ...]) -> str:
    """Returns how access tokens with these scopes are kept apart from others; '' for all."""
    return " ".join(sorted(set(scopes)))
