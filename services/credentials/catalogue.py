"""The catalogue of providers: what is declared of each, validated, without any code."""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from services.credentials.domain import ConnectionKind

Text = Annotated[str, Field(min_length=1, max_length=500)]


class ClientAuthentication(StrEnum):
    """How we say at the token endpoint who we are (RFC 6749, 2.3.1)."""

    BASIC = "basic"
    BODY = "body"


class RefreshRotation(StrEnum):
    """What a refresh does to the refresh token that is sent.

    STABLE: it stays as it is, so that a refresh can be repeated. ROTATES: it is replaced and the
    old one is of no use, so that one that is lost may be lost for good. MAYBE counts as ROTATES.
    """

    STABLE = "stable"
    ROTATES = "rotates"
    MAYBE = "maybe"


class Injection(BaseModel):
    """How a request to the provider's API carries the credential."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: Literal["header", "query", "basic"] = "header"
    # Of the header or of the query's parameter.
    name: Text = "Authorization"
    # `{token}` stands for the credential, `{username}` for the user's name.
    template: Text = "Bearer {token}"


class OAuth(BaseModel):
    """A provider's OAuth 2 endpoints; `{name}` in a URL stands for a connection's parameter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Empty: no authorization code grant.
    authorize_url: str = ""
    token_url: Text
    # Empty: grants are not withdrawn by request (RFC 7009).
    revoke_url: str = ""
    # Empty: it cannot be asked whether a token is good (RFC 7662).
    introspect_url: str = ""
    # What a URL for authorization carries beside, as `access_type: offline`.
    authorize_parameters: Mapping[str, str] = {}
    token_parameters: Mapping[str, str] = {}
    default_scopes: tuple[str, ...] = ()
    scope_separator: str = " "
    pkce: bool = True
    client_authentication: ClientAuthentication = ClientAuthentication.BODY
    token_request: Literal["form", "json"] = "form"  # noqa: S105 a format
    # Where the answer keeps it, names joined by dots, as `authed_user.access_token`.
    access_token_at: Text = "access_token"  # noqa: S105 a place
    refresh_token_at: Text = "refresh_token"  # noqa: S105 a place
    # The answer's name for the lifetime in seconds.
    expires_in_at: Text = "expires_in"
    scope_at: Text = "scope"
    # How the type is called whatever the answer says; empty: what it says.
    token_type: str = ""
    # When the answer names no lifetime; null: such a token does not expire.
    default_lifetime_seconds: int | None = Field(default=None, ge=60)
    refresh_rotation: RefreshRotation = RefreshRotation.MAYBE
    # A refresh, or a client credentials grant, can ask for fewer scopes.
    narrows_scopes: bool = False

    @property
    def default_lifetime(self) -> timedelta | None:
        """How long a token lives of which the provider does not say it."""
        seconds = self.default_lifetime_seconds
        return None if seconds is None else timedelta(seconds=seconds)


class Provider(BaseModel):
    """One provider, as its file declares it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    title: Text
    # Where this is documented.
    source: Annotated[str, Field(pattern=r"^https://")]
    kinds: Annotated[tuple[ConnectionKind, ...], Field(min_length=1)]
    api_base_url: Text
    # What a connection must say beside, each with the pattern that it must match as a whole.
    parameters: Mapping[str, str] = {}
    inject: Injection = Injection()
    # How an API key is carried, where that differs from a token.
    inject_api_key: Injection | None = None
    oauth: OAuth | None = None
