"""What the authorization server on loopback knows: clients, codes, tokens; all in memory."""

import hmac
import secrets
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin

PERSON = "person"


@dataclass(frozen=True, slots=True)
class Client(ClientMixin):
    """An OAuth client that the server knows, with its secret."""

    client_id: str
    client_secret: str = field(repr=False)
    # Where people may be led back to, compared as a whole.
    redirect_urls: tuple[str, ...]
    scopes: tuple[str, ...]

    def get_client_id(self) -> str:
        """Returns its id."""
        return self.client_id

    def get_default_redirect_uri(self) -> str:
        """Returns where people are led to whose request does not say."""
        return self.redirect_urls[0]

    def get_allowed_scope(self, scope: Collection[str] | str) -> str:
        """Returns what of the scopes it may have."""
        asked = scope.split() if isinstance(scope, str) else list(scope or self.scopes)
        return " ".join(each for each in asked if each in self.scopes)

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Returns whether people may be led there."""
        return redirect_uri in self.redirect_urls

    def check_client_secret(self, client_secret: str) -> bool:
        """Returns whether this is its secret."""
        return hmac.compare_digest(client_secret.encode(), self.client_secret.encode())

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """Returns whether it may say so who it is: with its secret, anywhere."""
        return method in {"client_secret_basic", "client_secret_post"}

    def check_response_type(self, response_type: str) -> bool:
        """Returns whether it may ask for this."""
        return response_type == "code"

    def check_grant_type(self, grant_type: str) -> bool:
        """Returns whether it may use this grant."""
        return grant_type in {"authorization_code", "refresh_token", "client_credentials"}


@dataclass(slots=True)
class Family:
    """Everything that came of one consent; it is good or withdrawn as a whole."""

    client_id: str
    scope: str
    revoked: bool = False


@dataclass(slots=True)
class Code(AuthorizationCodeMixin):
    """An authorization code; it works once."""

    family: Family
    redirect_url: str
    code_challenge: str
    code_challenge_method: str
    used: bool = False

    def get_redirect_uri(self) -> str:
        """Returns where the person was led back to."""
        return self.redirect_url

    def get_scope(self) -> str:
        """Returns what the person allowed."""
        return self.family.scope


@dataclass(slots=True)
class Token(TokenMixin):
    """An access token or a refresh token."""

    family: Family
    scope: str
    # Seconds; None: it does not expire.
    expires_in: int | None = None
    issued_at: float = field(default_factory=time.monotonic)
    revoked: bool = False
    # Of a refresh token: another has taken its place.
    spent: bool = False

    def check_client(self, client: ClientMixin) -> bool:
        """Returns whether it was given to this client."""
        return client.get_client_id() == self.family.client_id

    def get_scope(self) -> str:
        """Returns what it is good for."""
        return self.scope

    def get_expires_in(self) -> int:
        """Returns how long it is good from when it was given, in seconds."""
        return self.expires_in or 0

    def is_expired(self) -> bool:
        """Returns whether its time is over."""
        return self.expires_in is not None and time.monotonic() >= self.issued_at + self.expires_in

    def is_revoked(self) -> bool:
        """Returns whether it, or all that came of its consent, was withdrawn or spent."""
        return self.revoked or self.spent or self.family.revoked

    @property
    def good(self) -> bool:
        """Whether it can be used now."""
        return not self.is_revoked() and not self.is_expired()


@dataclass(slots=True)
class Rules:
    """How the server goes about it; may be changed while it runs."""

    # Of access tokens in seconds; None: they do not expire, and no answer says so.
    expires_in: int | None = 3_600
    # A refresh replaces the refresh token, and using the old one again ends the whole family.
    rotates: bool = True
    # Without rotation: answers repeat the refresh token.
    repeats_refresh_token: bool = False
    # People allow it without being asked.
    auto_consent: bool = True


@dataclass
class State:
    """Everything that the server remembers."""

    client: Client
    rules: Rules
    codes: dict[str, Code] = field(default_factory=dict, repr=False)
    access_tokens: dict[str, Token] = field(default_factory=dict, repr=False)
    refresh_tokens: dict[str, Token] = field(default_factory=dict, repr=False)
    # How often what was done: exchange, refresh, reuse, revoke, introspect, call and so on.
    seen: Counter[str] = field(default_factory=Counter)
    # What every secret that the server makes begins with, so that it is found wherever it gets to.
    mark: str = ""

    def new_secret(self, kind: str) -> str:
        """Returns a fresh token or code."""
        return f"{self.mark}{kind}-{secrets.token_urlsafe(32)}"

    def find(self, token: str) -> Token | None:
        """Returns the token of this text, of either kind."""
        return self.access_tokens.get(token) or self.refresh_tokens.get(token)

    def end(self, token: Token) -> None:
        """Withdraws a token: an access token alone, a refresh token with its whole family."""
        if any(token is each for each in self.refresh_tokens.values()):
            token.family.revoked = True
        token.revoked = True


def new_client(redirect_urls: Collection[str], scopes: Collection[str], mark: str = "") -> Client:
    """Returns a client with a fresh id, and a fresh secret that begins with `mark`."""
    return Client(
        f"client-{secrets.token_hex(8)}",
        f"{mark}{secrets.token_urlsafe(32)}",
        tuple(redirect_urls),
        tuple(scopes),
    )
