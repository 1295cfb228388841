"""What is sent to a provider's OAuth endpoints, the way the provider wants it."""

from collections.abc import Mapping, Sequence
from typing import Literal
from urllib.parse import parse_qsl

import httpx
from authlib.common.urls import url_encode
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge

from services.credentials.domain import OAuthClient
from services.credentials.providers.catalogue import OAuth
from services.credentials.providers.urls import filled

Authentication = Literal["basic", "body", "bearer", "none"]
Body = Literal["form", "json", "empty"]
_ACCEPT = {"Accept": "application/json"}
_METHODS = {"basic": "client_secret_basic", "body": "client_secret_post"}


def authorization_url(
    oauth: OAuth,
    client: OAuthClient,
    parameters: Mapping[str, str],
    *,
    redirect_url: str,
    state: str,
    verifier: str,
    scopes: Sequence[str],
) -> str:
    """Returns where a person allows it (RFC 6749, 4.1.1), with PKCE's challenge (RFC 7636)."""
    beside = {name: filled(text, parameters) for name, text in oauth.authorize_parameters.items()}
    if scopes:
        beside[oauth.scope_parameter] = oauth.scope_separator.join(scopes)
    if oauth.pkce:
        beside["code_challenge"] = create_s256_code_challenge(verifier)  # type: ignore[no-untyped-call]
        beside["code_challenge_method"] = "S256"
    url: str = prepare_grant_uri(
        filled(oauth.authorize_url, parameters),
        client.client_id,
        "code",
        redirect_uri=redirect_url,
        state=state,
        **beside,
    )
    return url


def token_request(
    oauth: OAuth,
    client: OAuthClient,
    parameters: Mapping[str, str],
    grant_type: str,
    asked: Mapping[str, str],
) -> httpx.Request:
    """Returns a request for a token (RFC 6749, 4.1.3, 4.4.2 and 6)."""
    refreshing = oauth.refresh_url if grant_type == "refresh_token" else ""
    beside = {name: filled(text, parameters) for name, text in oauth.token_parameters.items()}
    body = dict(parse_qsl(prepare_token_request(grant_type, **beside, **asked)))
    return _request(
        "POST",
        filled(refreshing or oauth.token_url, parameters),
        _carried(client, oauth.client_authentication.value, body),
        oauth.token_request,
        oauth.headers,
    )


def revoke_request(
    oauth: OAuth, client: OAuthClient, parameters: Mapping[str, str], token: str, hint: str
) -> httpx.Request:
    """Returns a request to withdraw a token (RFC 7009, 2.1), or what stands for it there."""
    how = oauth.revoke
    body = {how.parameter: token}
    if how.hint:
        body["token_type_hint"] = hint
    authentication = how.authentication or oauth.client_authentication.value
    return _request(
        how.method,
        filled(oauth.revoke_url, {**parameters, "client_id": client.client_id}),
        _carried(client, authentication, body, token),
        how.body,
        oauth.headers,
    )


def introspection_request(
    oauth: OAuth, client: OAuthClient, parameters: Mapping[str, str], refresh_token: str
) -> httpx.Request:
    """Returns a question whether a refresh token is good (RFC 7662, 2.1)."""
    body = {"token": refresh_token, "token_type_hint": "refresh_token"}
    return _request(
        "POST",
        filled(oauth.introspect_url, parameters),
        _carried(client, oauth.client_authentication.value, body),
        oauth.token_request,
        oauth.headers,
    )


_Carried = tuple[Mapping[str, str], Mapping[str, str]]


def _carried(
    client: OAuthClient, authentication: str, body: Mapping[str, str], token: str = ""
) -> _Carried:
    # Headers and parameters, with who asks in the one or the other.
    if authentication == "bearer":
        return {"Authorization": f"Bearer {token}"}, body
    if authentication == "none":
        return {}, body
    if not client.client_secret:
        return {}, {**body, "client_id": client.client_id}
    signing = ClientAuth(client.client_id, client.client_secret, _METHODS[authentication])
    form = url_encode(list(body.items()))
    _, headers, signed = signing.prepare("POST", "", {}, form)  # type: ignore[no-untyped-call]
    return headers, dict(parse_qsl(signed))


def _request(
    method: str, url: str, carried: _Carried, body: Body, headers: Mapping[str, str]
) -> httpx.Request:
    own, parameters = carried
    sent = {**_ACCEPT, **headers, **own}
    if body == "empty":
        return httpx.Request(method, url, headers=sent)
    if body == "json":
        return httpx.Request(method, url, headers=sent, json=dict(parameters))
    return httpx.Request(method, url, headers=sent, data=dict(parameters))
