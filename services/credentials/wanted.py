"""What callers ask for, and whether the catalogue has it; without any store."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias
from urllib.parse import urlsplit

from services.credentials.domain import MOST_SCOPES, ConnectionKind, OAuthClient
from services.credentials.providers.catalogue import Provider
from services.credentials.providers.injection import is_sendable, is_username
from services.shared.errors import InvalidFieldError
from services.shared.ids import ConnectionId

MOST_SECRET_LENGTH = 8_192
MOST_CLIENT_ID_LENGTH = 512
MOST_USERNAME_LENGTH = 256
MOST_URL_LENGTH = 2_000
_MOST_SCOPE_LENGTH = 256
# RFC 6749, 3.3: visible ASCII without quotation mark and backslash.
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+")
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True)
class KeptSecret:
    """A static token or an API key."""

    kind: ConnectionKind
    secret: str = field(repr=False)
    username: str = ""
    # When the provider will end it; None: it will not.
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class OwnClient:
    """An OAuth client of the tenant's own, which acts for itself."""

    client: OAuthClient
    # Empty: what the catalogue names.
    scopes: tuple[str, ...]
    kind: ConnectionKind = ConnectionKind.CLIENT_CREDENTIALS


Credential: TypeAlias = KeptSecret | OwnClient


@dataclass(frozen=True, slots=True)
class NewConnection:
    """A connection to be made with a credential that the tenant has already."""

    request_id: str
    provider: str
    name: str
    exclusive: bool
    parameters: Mapping[str, str]
    credential: Credential

    def content(self) -> str:
        """Returns all that makes it this one and no other; holds secrets."""
        return canonical(
            "connection",
            self.provider,
            self.name,
            self.exclusive,
            sorted(self.parameters.items()),
            credential_content(self.credential),
        )


@dataclass(frozen=True, slots=True)
class Update:
    """What of a connection is to change; None: not that."""

    name: str | None
    exclusive: bool | None
    credential: Credential | None


@dataclass(frozen=True, slots=True)
class NewAuthorization:
    """An authorization to be started, for a new connection."""

    request_id: str
    provider: str
    name: str
    exclusive: bool
    parameters: Mapping[str, str]
    scopes: tuple[str, ...]
    # None: the operator's.
    client: OAuthClient | None
    # Empty: the front door.
    redirect_url: str

    def content(self) -> str:
        """Returns all that makes it this one and no other; holds secrets."""
        return canonical(
            "authorization",
            self.provider,
            self.name,
            self.exclusive,
            sorted(self.parameters.items()),
            self.scopes,
            client_content(self.client),
            self.redirect_url,
        )


@dataclass(frozen=True, slots=True)
class Renewal:
    """An authorization to be started anew, for a connection that is there."""

    request_id: str
    connection_id: ConnectionId
    # Empty: what the catalogue names.
    scopes: tuple[str, ...]
    # None: the one that the connection has.
    client: OAuthClient | None
    # Empty: the front door.
    redirect_url: str

    def content(self) -> str:
        """Returns all that makes it this one and no other; holds secrets."""
        return canonical(
            "renewal",
            self.connection_id,
            self.scopes,
            client_content(self.client),
            self.redirect_url,
        )


def canonical(*parts: object) -> str:
    """Returns one text for equal parts, another for others."""
    return json.dumps(parts, separators=(",", ":"))


def credential_content(credential: Credential) -> list[object]:
    """Returns what makes the credential this one; holds its secret."""
    if isinstance(credential, OwnClient):
        return [credential.kind, client_content(credential.client), credential.scopes]
    ends = credential.expires_at.isoformat() if credential.expires_at else None
    return [credential.kind, credential.secret, credential.username, ends]


def client_content(client: OAuthClient | None) -> list[str] | None:
    """Returns what makes the client this one; holds its secret."""
    return None if client is None else [client.client_id, client.client_secret]


def check_kind(provider: Provider, kind: ConnectionKind, credential_field: str) -> None:
    """Returns when connections of that kind can be made to the provider.

    Raises:
        InvalidFieldError: they cannot.
    """
    if kind not in provider.kinds:
        takes = ", ".join(provider.kinds)
        raise InvalidFieldError(credential_field, f"{provider.name} takes {takes}")


def check_username(provider: Provider, kept: KeptSecret) -> None:
    """Returns when a user's name is given exactly where the provider wants one beside the key.

    Raises:
        InvalidFieldError: it is missing, or of no use.
    """
    if kept.kind is not ConnectionKind.API_KEY:
        return
    wanted = provider.injection(kept.kind).wants_username
    if wanted and not is_username(kept.username):
        raise InvalidFieldError(
            "api_key.username", f"{provider.name} needs one beside the key, without a colon"
        )
    if kept.username and not wanted:
        raise InvalidFieldError("api_key.username", f"{provider.name} takes none")


def read_scopes(field_name: str, given: Iterable[str]) -> tuple[str, ...]:
    """Returns the scopes, sorted, each once.

    Raises:
        InvalidFieldError: one is no scope (RFC 6749, 3.3), or they are too many.
    """
    scopes = tuple(sorted(set(given)))
    if len(scopes) > MOST_SCOPES:
        raise InvalidFieldError(field_name, f"must be at most {MOST_SCOPES}")
    if not all(len(one) <= _MOST_SCOPE_LENGTH and _SCOPE.fullmatch(one) for one in scopes):
        raise InvalidFieldError(
            field_name,
            f"must be 1 to {_MOST_SCOPE_LENGTH} visible ASCII characters each, without spaces",
        )
    return scopes


def read_secret(
    field_name: str, value: str, *, least: int = 1, most: int = MOST_SECRET_LENGTH
) -> str:
    """Returns `value` without surrounding space when it can travel in a header.

    Raises:
        InvalidFieldError: it is too short or too long, or has other than printable ASCII.
    """
    stripped = value.strip()
    if not least <= len(stripped) <= most:
        raise InvalidFieldError(field_name, f"must have {least} to {most} characters")
    if stripped and not is_sendable(stripped):
        raise InvalidFieldError(field_name, "must have printable ASCII characters only")
    return stripped


def read_redirect_url(value: str) -> str:
    """Returns a redirect URL of the caller's own: https, or http on loopback (RFC 8252, 7.3).

    Raises:
        InvalidFieldError: it is neither, or has more than one may have (RFC 6749, 3.1.2).
    """
    if len(value) > MOST_URL_LENGTH or not (value.isascii() and value.isprintable()):
        raise InvalidFieldError("redirect_url", "must be a URL in printable ASCII")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidFieldError("redirect_url", "is no URL") from None
    if not host or "#" in value or "@" in parts.netloc or " " in value or "\\" in value:
        raise InvalidFieldError("redirect_url", "must name a host, and no user and no fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in _LOOPBACK):
        raise InvalidFieldError("redirect_url", "must be https, or http on loopback")
    return value
