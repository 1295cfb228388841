"""The catalogue of providers: what is declared of each, validated, without any code."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from services.credentials.domain import ConnectionKind
from services.credentials.providers.fields import (
    AnswerPath,
    HeaderName,
    Name,
    Pattern,
    Scope,
    Text,
    Title,
    TokenHint,
)
from services.credentials.providers.urls import check_url, check_values, filled, places

_CLIENT_ID = "client_id"
_CLIENT_FREE = frozenset({ConnectionKind.STATIC_TOKEN, ConnectionKind.API_KEY})


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClientAuthentication(StrEnum):
    """How we say at the token endpoint who we are (RFC 6749, 2.3.1)."""

    BASIC = "basic"
    BODY = "body"


class RefreshRotation(StrEnum):
    """What a refresh does to the refresh token that is sent.

    STABLE: it stays of use, so that a refresh can be repeated. ROTATES: it is replaced and the
    old one is of no use, so that one that is lost may be lost for good. MAYBE counts as ROTATES.
    """

    STABLE = "stable"
    ROTATES = "rotates"
    MAYBE = "maybe"


class Injection(_Declared):
    """How a request to the provider's API carries the credential."""

    place: Literal["header", "query", "basic"] = "header"
    # Of the header or of the query's parameter.
    name: HeaderName = "Authorization"
    # `{token}` stands for the credential, `{username}` for the user's name. For `basic` this is
    # user and password with a colon between.
    template: Text = "Bearer {token}"
    # Sent beside, as a version that the API insists on; `{client_id}` is the OAuth client's.
    headers: Mapping[HeaderName, Text] = {}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.template.count("{token}") != 1:
            raise ValueError("template must hold {token}, once")
        if places(self.template) - {"token", "username"}:
            raise ValueError("template knows {token} and {username}")
        if self.place == "basic" and self.template.count(":") != 1:
            raise ValueError("template must hold one colon, between user and password")
        if self.place != "header" and self.template == "Bearer {token}":
            raise ValueError("template must be said unless the place is a header")
        if any(places(value) - {_CLIENT_ID} for value in self.headers.values()):
            raise ValueError("headers know {client_id} alone")
        return self

    @property
    def wants_username(self) -> bool:
        """Whether an API key is of no use without the user's name."""
        return "{username}" in self.template


class RevokeRequest(_Declared):
    """How a provider wants to be asked to withdraw a token, where RFC 7009 is not enough."""

    method: Literal["POST", "DELETE"] = "POST"
    # bearer: by the token that is to be withdrawn. Absent: as at the token endpoint.
    authentication: Literal["basic", "body", "bearer", "none"] | None = None
    body: Literal["form", "json", "empty"] = "form"
    # Of the parameter with the token; and whether `token_type_hint` goes with it.
    parameter: Name = "token"
    hint: bool = True
    # How it says that the token is of no use already, where that is not a success (RFC 7009, 2.2).
    gone_statuses: tuple[Annotated[int, Field(ge=400, le=499)], ...] = ()
    gone_errors: tuple[Text, ...] = ()
    # Which tokens it takes, the better one first.
    tokens: Annotated[tuple[TokenHint, ...], Field(min_length=1)] = (
        "refresh_token",
        "access_token",
    )


class OAuth(_Declared):
    """A provider's OAuth 2 endpoints; `{name}` in a URL stands for a connection's parameter."""

    # Empty: no authorization code grant.
    authorize_url: str = ""
    token_url: Text
    # Empty: at the token endpoint, as RFC 6749 has it.
    refresh_url: str = ""
    # Empty: grants are not withdrawn by request (RFC 7009). `{client_id}` is the client's.
    revoke_url: str = ""
    # Empty: it cannot be asked whether a refresh token is good (RFC 7662).
    introspect_url: str = ""
    # What a URL for authorization carries beside, as `access_type: offline`; and each request to
    # the token endpoint. `{name}` stands for a connection's parameter.
    authorize_parameters: Mapping[str, Text] = {}
    token_parameters: Mapping[str, Text] = {}
    # Sent with each request to these endpoints beside `Accept`.
    headers: Mapping[HeaderName, Text] = {}
    default_scopes: tuple[Scope, ...] = ()
    scope_separator: Literal[" ", ",", ", ", "+"] = " "
    # How scopes are called in the URL for authorization.
    scope_parameter: Name = "scope"
    pkce: bool = True
    client_authentication: ClientAuthentication = ClientAuthentication.BODY
    token_request: Literal["form", "json"] = "form"  # noqa: S105 a format
    # Where the answer keeps what it grants.
    access_token_at: AnswerPath = "access_token"  # noqa: S105 a place
    refresh_token_at: AnswerPath = "refresh_token"  # noqa: S105 a place
    # The lifetime in seconds.
    expires_in_at: AnswerPath = "expires_in"
    scope_at: AnswerPath = "scope"
    # Where an error is named, also in an answer with status 200; the first that is there counts.
    errors_at: Annotated[tuple[AnswerPath, ...], Field(min_length=1)] = ("error",)
    # What these errors mean here, whatever RFC 6749 says of them: the grant is of no use any more.
    grant_errors: tuple[Text, ...] = ()
    # The same, for the client.
    client_errors: tuple[Text, ...] = ()
    # How the type is called whatever the answer says; empty: what it says.
    token_type: Literal["", "Bearer"] = ""
    # When the answer names no lifetime; null: such a token does not expire.
    default_lifetime_seconds: int | None = Field(default=None, ge=60, le=10**9)
    # A lifetime of 0 means that the token does not expire.
    zero_is_forever: bool = False
    refresh_rotation: RefreshRotation = RefreshRotation.MAYBE
    # A refresh, or a client credentials grant, can ask for fewer scopes.
    narrows_scopes: bool = False
    revoke: RevokeRequest = RevokeRequest()

    @property
    def default_lifetime(self) -> timedelta | None:
        """How long a token lives of which the provider does not say it."""
        seconds = self.default_lifetime_seconds
        return None if seconds is None else timedelta(seconds=seconds)

    @property
    def revocable_tokens(self) -> tuple[TokenHint, ...]:
        """Which tokens it withdraws by request, the better one first; empty: none."""
        return self.revoke.tokens if self.revoke_url else ()


class Provider(_Declared):
    """One provider, as its file declares it."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
    title: Title
    # Where this is documented.
    source: Annotated[Text, Field(pattern=r"^https://[^\s]+$")]
    kinds: Annotated[tuple[ConnectionKind, ...], Field(min_length=1)]
    api_base_url: Text
    # What a connection must say beside, each with the pattern that it must match as a whole.
    parameters: Mapping[Name, Pattern] = {}
    inject: Injection = Injection()
    # How an API key is carried, where that differs from a token.
    inject_api_key: Injection | None = None
    oauth: OAuth | None = None

    @field_validator("parameters")
    @classmethod
    def _names_are_free(cls, parameters: Mapping[str, str]) -> Mapping[str, str]:
        if _CLIENT_ID in parameters:
            raise ValueError("client_id is the OAuth client's own")
        return parameters

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_kinds(self)
        return self

    @model_validator(mode="after")
    def _declared(self) -> Self:
        for field, text in _templates(self):
            unknown = places(text) - set(self.parameters)
            if unknown:
                raise ValueError(f"{field}: {{{min(unknown)}}} is not declared in parameters")
        return self

    @model_validator(mode="after")
    def _askable(self, info: ValidationInfo) -> Self:
        private = bool((info.context or {}).get("private_targets"))
        for field, url, names in _urls(self):
            try:
                check_url(url, names, private=private)
            except ValueError as error:
                raise ValueError(f"{field}: {error}") from error
        return self

    def check_parameters(self, values: Mapping[str, str]) -> None:
        """Returns when `values` are what a connection must say beside.

        Raises:
            InvalidFieldError: one is missing, one is too many, or one does not match.
        """
        check_values(self.parameters, values)

    def api_base(self, parameters: Mapping[str, str]) -> str:
        """Returns where the provider's API begins for a connection with these parameters.

        Raises:
            ValueError: they are not what the catalogue asks for (any more).
        """
        return filled(self.api_base_url, parameters)

    def injection(self, kind: ConnectionKind) -> Injection:
        """Returns how a credential of this kind is carried."""
        own = self.inject_api_key if kind is ConnectionKind.API_KEY else None
        return own or self.inject


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All providers, by name."""

    providers: Mapping[str, Provider]

    def get(self, name: str) -> Provider | None:
        """Returns the provider of this name; None when there is none."""
        return self.providers.get(name)

    def all(self) -> tuple[Provider, ...]:
        """Returns every provider, in the order of their names."""
        return tuple(self.providers[name] for name in sorted(self.providers))


def _check_kinds(provider: Provider) -> None:
    kinds, oauth = set(provider.kinds), provider.oauth
    if len(kinds) < len(provider.kinds):
        raise ValueError("kinds: one is there twice")
    if kinds - _CLIENT_FREE and oauth is None:
        raise ValueError("oauth: must be said for these kinds")
    if oauth is not None and not kinds - _CLIENT_FREE:
        raise ValueError("oauth: no kind makes use of it")
    if oauth is not None and (ConnectionKind.AUTHORIZATION_CODE in kinds) != bool(
        oauth.authorize_url
    ):
        raise ValueError("oauth.authorize_url: goes with the kind authorization_code")
    if provider.inject_api_key is not None and ConnectionKind.API_KEY not in kinds:
        raise ValueError("inject_api_key: goes with the kind api_key")


def _urls(provider: Provider) -> list[tuple[str, str, set[str]]]:
    names: Any = set(provider.parameters)
    oauth = provider.oauth
    found = [("api_base_url", provider.api_base_url, names)]
    if oauth is not None:
        found += [
            ("oauth.authorize_url", oauth.authorize_url, names),
            ("oauth.token_url", oauth.token_url, names),
            ("oauth.refresh_url", oauth.refresh_url, names),
            ("oauth.introspect_url", oauth.introspect_url, names),
            ("oauth.revoke_url", oauth.revoke_url, names | {_CLIENT_ID}),
        ]
    return [(field, url, allowed) for field, url, allowed in found if url]


def _templates(provider: Provider) -> list[tuple[str, str]]:
    oauth = provider.oauth
    if oauth is None:
        return []
    sent = (
        ("authorize_parameters", oauth.authorize_parameters),
        ("token_parameters", oauth.token_parameters),
    )
    return [
        (f"oauth.{field}.{name}", text) for field, texts in sent for name, text in texts.items()
    ]
