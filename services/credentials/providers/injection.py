"""How a request to a provider carries a credential, as the provider's file says."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.credentials.domain import ConnectionKind
from services.credentials.providers.catalogue import Injection, Provider

# No token or key of a provider in the catalogue comes near.
MOST_SECRET_LENGTH = 16_384


@dataclass(frozen=True, slots=True)
class Injected:
    """What a request must carry."""

    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    # `Bearer`; `Basic` and `ApiKey` for what is no token.
    token_type: str


def is_sendable(secret: str) -> bool:
    """Returns whether a secret can be sent in a header: printable ASCII, so no line can end.

    Spaces are for passwords, and none stands at an end, where a header would lose it.
    """
    return (
        0 < len(secret) <= MOST_SECRET_LENGTH
        and secret.isascii()
        and secret.isprintable()
        and secret == secret.strip()
    )


def is_username(username: str) -> bool:
    """Returns whether a user's name can be sent: RFC 7617 ends it at the first colon."""
    return is_sendable(username) and ":" not in username


def injected(
    provider: Provider, kind: ConnectionKind, secret: str, username: str = "", client_id: str = ""
) -> Injected:
    """Returns what a request to the provider carries to act with the credential.

    Raises:
        ValueError: the secret or a name cannot be sent, or a name that is needed is missing.
    """
    how = provider.injection(kind)
    if not is_sendable(secret) or (how.wants_username and not is_username(username)):
        raise ValueError("the credential cannot be sent")
    headers = {name: _with_client(value, client_id) for name, value in how.headers.items()}
    carried = _filled(how.template, secret, username)
    if how.place == "query":
        return Injected(headers, {how.name: carried}, _type(how, kind))
    if how.place == "basic":
        carried = f"Basic {base64.b64encode(carried.encode()).decode()}"
    return Injected({**headers, how.name: carried}, {}, _type(how, kind))


def _filled(template: str, secret: str, username: str) -> str:
    # The name first would let a name hold the place of the secret.
    before, _, behind = template.partition("{token}")
    return "".join(
        (before.replace("{username}", username), secret, behind.replace("{username}", username))
    )


def _with_client(value: str, client_id: str) -> str:
    if "{client_id}" not in value:
        return value
    if not is_sendable(client_id):
        raise ValueError("the provider wants the client's id beside the token")
    return value.replace("{client_id}", client_id)


def _type(how: Injection, kind: ConnectionKind) -> str:
    if how.place == "basic":
        return "Basic"
    return "ApiKey" if kind is ConnectionKind.API_KEY else "Bearer"
