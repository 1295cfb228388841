"""What is put to a provider to get a token: with which client, refresh token and scopes."""

from dataclasses import dataclass, field
from datetime import timedelta

import structlog

from services.credentials.domain import (
    ConnectionKind,
    Grant,
    GrantRefusedError,
    OAuthClient,
)
from services.credentials.grants import client_secret_place, refresh_place
from services.credentials.ports import Gateway
from services.credentials.providers.catalogue import Catalogue, Provider, RefreshRotation
from services.credentials.providers.clients import OperatorClients
from services.credentials.refusals import away
from services.credentials.standings import Standing
from services.shared.crypto import TenantCipher
from services.shared.errors import UnavailableError

_UNKNOWN_FOR = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class Question:
    """A request for a token, ready to be sent."""

    standing: Standing
    provider: Provider
    client: OAuthClient
    # None: a client credentials grant, which spends nothing.
    refresh_token: str | None = field(repr=False)
    # Empty: all that was granted.
    narrowed_to: tuple[str, ...]

    @property
    def repeatable(self) -> bool:
        """Whether asking twice does no harm."""
        oauth = self.provider.oauth
        return self.refresh_token is None or (
            oauth is not None and oauth.refresh_rotation is RefreshRotation.STABLE
        )

    @property
    def asked(self) -> tuple[str, ...]:
        """The scopes that the answer is for when it does not say."""
        return self.narrowed_to or self.standing.scopes or ()


class Asking:
    """Puts questions to providers, through the gateway."""

    def __init__(self, catalogue: Catalogue, clients: OperatorClients, gateway: Gateway) -> None:
        self._catalogue = catalogue
        self._clients = clients
        self._gateway = gateway

    def question(
        self, standing: Standing, cipher: TenantCipher, narrowed_to: tuple[str, ...]
    ) -> Question:
        """Returns what is to be asked for the connection.

        Raises:
            UnavailableError: the operator has taken the provider, or the client, away.
            UnreadableError: what is kept does not open.
        """
        provider = self._catalogue.get(standing.provider)
        if provider is None or provider.oauth is None:
            raise _not_configured(standing, "the provider is not in the catalogue any more")
        client = self._client(standing, cipher)
        refresh_token = None
        if standing.kind is ConnectionKind.AUTHORIZATION_CODE and standing.sealed_refresh_token:
            place = refresh_place(standing.connection_id)
            refresh_token = cipher.open(place, standing.sealed_refresh_token)
        return Question(standing, provider, client, refresh_token, narrowed_to)

    async def ask(self, question: Question) -> Grant:
        """Returns what the provider grants.

        Raises:
            ProviderError: it did not; which one says what is known of the refresh token.
        """
        standing = question.standing
        common = (question.provider, question.client, standing.parameters)
        if question.refresh_token is None:
            return await self._gateway.client_credentials(*common, scopes=question.asked)
        return await self._gateway.refresh(
            *common, refresh_token=question.refresh_token, scopes=question.narrowed_to
        )

    async def is_active(self, question: Question) -> bool | None:
        """Returns whether the refresh token is still good; None: the provider does not tell us.

        Raises:
            ProviderAwayError, AnswerLostError: it cannot be found out now.
        """
        if question.refresh_token is None:
            return None
        try:
            return await self._gateway.is_active(
                question.provider,
                question.client,
                question.standing.parameters,
                refresh_token=question.refresh_token,
            )
        except GrantRefusedError:
            # It does not let this client ask, which says nothing of the token.
            return None

    def _client(self, standing: Standing, cipher: TenantCipher) -> OAuthClient:
        if standing.client_id is None:
            client = self._clients.get(standing.provider)
            if client is None:
                raise _not_configured(standing, "the operator has no client at the provider")
            return client
        secret = ""
        if standing.sealed_client_secret is not None:
            place = client_secret_place(standing.connection_id)
            secret = cipher.open(place, standing.sealed_client_secret)
        return OAuthClient(standing.client_id, secret)


def _not_configured(standing: Standing, message: str) -> UnavailableError:
    structlog.get_logger().error(message, provider=standing.provider)
    return away(_UNKNOWN_FOR, message)
