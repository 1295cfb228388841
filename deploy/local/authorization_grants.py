"""OAuth 2 as Authlib serves it, over the state in memory."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from authlib.oauth2.rfc6749 import AuthorizationServer, InvalidRequestError, OAuth2Payload
from authlib.oauth2.rfc6749 import OAuth2Request as AuthlibRequest
from authlib.oauth2.rfc6749.grants import (
    AuthorizationCodeGrant,
    ClientCredentialsGrant,
    RefreshTokenGrant,
)
from authlib.oauth2.rfc6750 import BearerTokenGenerator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from starlette.responses import Response

from deploy.local.authorization_state import PERSON, Client, Code, Family, State, Token

_METHODS = ["client_secret_basic", "client_secret_post"]
Pairs = Sequence[tuple[str, str]]


class Payload(OAuth2Payload):
    """Parameters, out of the query and the form."""

    def __init__(self, pairs: Pairs) -> None:
        self._pairs = pairs

    @property
    def data(self) -> dict[str, str]:
        """Each parameter, the last where there are several."""
        return dict(self._pairs)

    @property
    def datalist(self) -> dict[str, list[str]]:
        """Each parameter with all its values."""
        found: dict[str, list[str]] = {}
        for name, value in self._pairs:
            found.setdefault(name, []).append(value)
        return found


class Request(AuthlibRequest):
    """One request, in Authlib's terms."""

    def __init__(
        self, method: str, url: str, headers: Mapping[str, str], query: Pairs, form: Pairs
    ) -> None:
        # Authlib insists on https; on loopback nothing crosses a wire.
        super().__init__(method, urlsplit(url)._replace(scheme="https").geturl(), headers=headers)
        self._query, self._form = query, form
        self.payload = Payload([*query, *form])

    @property
    def args(self) -> dict[str, str | None]:
        """The parameters of the query."""
        return dict(self._query)

    @property
    def form(self) -> dict[str, str]:
        """The parameters of the form."""
        return dict(self._form)


class Server(AuthorizationServer):
    """Authlib's server for the clients, codes and tokens of a `State`."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state
        self.register_token_generator("default", self._generator())
        self.register_grant(_CodeGrant, [_Challenge(required=True)])
        self.register_grant(_RefreshGrant)
        self.register_grant(_ClientGrant)
        self.register_endpoint(_Revocation)
        self.register_endpoint(_Introspection)

    def query_client(self, client_id: str) -> Client | None:  # type: ignore[override]
        """Returns the client of this id."""
        return self.state.client if client_id == self.state.client.client_id else None

    def save_token(self, token: dict[str, Any], request: AuthlibRequest) -> None:
        """Remembers what a grant gave."""
        family = _family(request, token.get("scope", ""))
        self.state.access_tokens[token["access_token"]] = Token(
            family, token.get("scope", ""), token.get("expires_in")
        )
        if "refresh_token" in token:
            self.state.refresh_tokens.setdefault(
                token["refresh_token"], Token(family, family.scope)
            )

    def create_oauth2_request(self, request: Request) -> Request:
        """Returns the request: it is one already."""
        return request

    def handle_response(self, status: int, body: Any, headers: Any) -> Response:
        """Returns the answer as Starlette sends it."""
        text = json.dumps(body) if isinstance(body, dict) else body
        return Response(text, status, dict(headers))

    def send_signal(self, name: str, *_args: object, **_details: object) -> None:
        """Counts what happened."""
        self.state.seen[name] += 1

    def _generator(self) -> BearerTokenGenerator:
        return BearerTokenGenerator(
            lambda **_: self.state.new_secret("at"),
            lambda **_: self.state.new_secret("rt"),
            lambda *_: self.state.rules.expires_in or 0,
        )


class _Challenge(CodeChallenge):
    """PKCE, without which no code is given (RFC 9700, 2.1.1)."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]  # noqa: RUF012 as the base class has it

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Returns when the request has a challenge that can be checked."""
        if grant.request.payload.data.get("code_challenge_method") != "S256":
            raise InvalidRequestError("PKCE with S256 is required")
        super().validate_code_challenge(grant, redirect_uri)


class _CodeGrant(AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS

    def generate_authorization_code(self) -> str:
        code: str = self.server.state.new_secret("code")
        return code

    def save_authorization_code(self, code: str, request: AuthlibRequest) -> None:
        asked = request.payload.data  # type: ignore[union-attr]
        self.server.state.codes[code] = Code(
            Family(asked["client_id"], request.scope),
            asked.get("redirect_uri", ""),
            asked["code_challenge"],
            asked["code_challenge_method"],
        )

    def query_authorization_code(self, code: str, client: Client) -> Code | None:  # type: ignore[override]
        known: Code | None = self.server.state.codes.get(code)
        if known is None or known.family.client_id != client.client_id:
            return None
        if known.used:
            # RFC 6749, 4.1.2: whoever else has it may have the tokens.
            known.family.revoked = True
            return None
        return known

    def delete_authorization_code(self, authorization_code: Code) -> None:
        authorization_code.used = True
        self.server.state.seen["exchange"] += 1

    def authenticate_user(self, authorization_code: Code) -> str:
        return PERSON


class _RefreshGrant(RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS

    def authenticate_refresh_token(self, refresh_token: str) -> Token | None:  # type: ignore[override]
        state: State = self.server.state
        known = state.refresh_tokens.get(refresh_token)
        if known is not None and known.spent:
            # RFC 9700, 4.14.2: one of the two who have it is a thief.
            known.family.revoked = True
            state.seen["reuse"] += 1
        return known if known is not None and known.good else None

    def authenticate_user(self, refresh_token: Token) -> str:
        return PERSON

    def issue_token(self, user: str, refresh_token: Token) -> dict[str, str | int]:  # type: ignore[override]
        rules = self.server.state.rules
        token = self.generate_token(
            user=user,
            scope=self.request.payload.scope or refresh_token.scope,  # type: ignore[union-attr]
            include_refresh_token=rules.rotates,
        )
        if rules.repeats_refresh_token and not rules.rotates:
            token["refresh_token"] = self.request.form["refresh_token"]
        return token

    def revoke_old_credential(self, refresh_token: Token) -> None:  # type: ignore[override]
        refresh_token.spent = self.server.state.rules.rotates
        self.server.state.seen["refresh"] += 1


class _ClientGrant(ClientCredentialsGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = _METHODS

    def create_token_response(self) -> Any:
        answer = super().create_token_response()  # type: ignore[no-untyped-call]
        self.server.state.seen["client_credentials"] += 1
        return answer


class _Revocation(RevocationEndpoint):
    CLIENT_AUTH_METHODS = _METHODS

    def query_token(self, token_string: str, token_type_hint: str | None) -> Token | None:
        found: Token | None = self.server.state.find(token_string)
        return found

    def revoke_token(self, token: Token, request: AuthlibRequest) -> None:
        self.server.state.end(token)
        self.server.state.seen["revoke"] += 1


class _Introspection(IntrospectionEndpoint):
    CLIENT_AUTH_METHODS = _METHODS

    def query_token(self, token_string: str, token_type_hint: str | None) -> Token | None:
        self.server.state.seen["introspect"] += 1
        found: Token | None = self.server.state.find(token_string)
        return found

    def check_permission(self, token: Token, client: Client, request: AuthlibRequest) -> bool:
        return token.check_client(client)

    def introspect_token(self, token: Token) -> dict[str, Any]:
        return {"active": token.good, "scope": token.scope, "client_id": token.family.client_id}


def _family(request: AuthlibRequest, scope: str) -> Family:
    if request.authorization_code is not None:
        family: Family = request.authorization_code.family
        return family
    if request.refresh_token is not None:
        family = request.refresh_token.family
    else:
        family = Family(request.client.get_client_id(), scope)  # type: ignore[union-attr]
    return family
