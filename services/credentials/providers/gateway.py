"""The providers' OAuth endpoints, over HTTP: `ports.Gateway`."""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import httpx

from services.credentials.domain import (
    AnswerLostError,
    Grant,
    OAuthClient,
    ProviderAwayError,
)
from services.credentials.providers import requests
from services.credentials.providers.answers import error_name, json_object, read_grant, refusal
from services.credentials.providers.catalogue import OAuth, Provider

# Nothing of the request has left when httpx raises one of these.
_NOT_SENT = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.UnsupportedProtocol,
    httpx.InvalidURL,
)
_SECRETS = ("code", "code_verifier", "refresh_token")


class HttpGateway:
    """Asks providers, and tells apart what they answer; see `ports.Gateway`."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    def authorization_url(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        redirect_url: str,
        state: str,
        verifier: str,
        scopes: Sequence[str],
    ) -> str:
        """Returns where a person allows it.

        Raises:
            ProviderAwayError: the catalogue asks for other parameters than these.
        """
        oauth = _oauth(provider)
        if not oauth.authorize_url:
            raise ProviderAwayError("the catalogue declares no authorization for this provider")
        with _as_declared():
            return requests.authorization_url(
                oauth,
                client,
                parameters,
                redirect_url=redirect_url,
                state=state,
                verifier=verifier,
                scopes=scopes,
            )

    async def exchange(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        redirect_url: str,
        code: str,
        verifier: str,
    ) -> Grant:
        """Returns what an authorization code is good for."""
        asked = {"redirect_uri": redirect_url, "code": code}
        if _oauth(provider).pkce:
            asked["code_verifier"] = verifier
        return await self._granted(provider, client, parameters, "authorization_code", asked)

    async def refresh(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        refresh_token: str,
        scopes: Sequence[str] = (),
    ) -> Grant:
        """Returns a fresh access token; with `scopes`, one that is good for these alone."""
        asked = {"refresh_token": refresh_token, **_scope(provider, scopes)}
        return await self._granted(provider, client, parameters, "refresh_token", asked)

    async def client_credentials(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        scopes: Sequence[str],
    ) -> Grant:
        """Returns an access token for the client itself."""
        asked = _scope(provider, scopes)
        return await self._granted(provider, client, parameters, "client_credentials", asked)

    async def is_active(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        refresh_token: str,
    ) -> bool | None:
        """Returns whether a refresh token is still good; None when the provider does not tell."""
        oauth = _oauth(provider)
        if not oauth.introspect_url:
            return None
        with _as_declared():
            request = requests.introspection_request(oauth, client, parameters, refresh_token)
        answer = await self._answer(request)
        content = json_object(answer) or {}
        if answer.is_success:
            active = content.get("active")
            return active if isinstance(active, bool) else None
        raise refusal(oauth, answer, content, (refresh_token, client.client_secret))

    async def revoke(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        token: str,
        hint: str,
    ) -> None:
        """Returns when the provider has withdrawn the token, or says that it is none of its."""
        oauth = _oauth(provider)
        with _as_declared():
            request = requests.revoke_request(oauth, client, parameters, token, hint)
        answer = await self._answer(request)
        if answer.status_code in oauth.revoke.gone_statuses:
            return
        content, secrets = json_object(answer), (token, client.client_secret)
        error = error_name(oauth, content, secrets)
        if error in oauth.revoke.gone_errors or (answer.is_success and error is None):
            return
        raise refusal(oauth, answer, content, secrets)

    async def _granted(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        grant_type: str,
        asked: Mapping[str, str],
    ) -> Grant:
        oauth = _oauth(provider)
        with _as_declared():
            request = requests.token_request(oauth, client, parameters, grant_type, asked)
        began = time.monotonic()
        answer = await self._answer(request)
        elapsed = timedelta(seconds=time.monotonic() - began)
        return read_grant(oauth, answer, elapsed, _secrets(client, asked))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        # What httpx raises holds the request, with its secrets: none of it goes on from here.
        try:
            return await self._http.send(request)
        except _NOT_SENT as error:
            raise ProviderAwayError(f"not reached: {type(error).__name__}") from None
        except httpx.HTTPError as error:
            raise AnswerLostError(f"no answer: {type(error).__name__}") from None


def _oauth(provider: Provider) -> OAuth:
    if provider.oauth is None:
        raise ProviderAwayError("the catalogue declares no OAuth for this provider (any more)")
    return provider.oauth


def _scope(provider: Provider, scopes: Sequence[str]) -> Mapping[str, str]:
    return {"scope": _oauth(provider).scope_separator.join(scopes)} if scopes else {}


def _secrets(client: OAuthClient, asked: Mapping[str, str]) -> Collection[str]:
    return [client.client_secret, *(asked[name] for name in _SECRETS if name in asked)]


@contextmanager
def _as_declared() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ProviderAwayError(f"the catalogue does not fit the connection: {error}") from None
