"""What the use cases need of others, in their own words; `server.py` chooses who gives it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from services.credentials.domain import Grant, OAuthClient
from services.credentials.providers.catalogue import Provider
from services.shared.ids import ConnectionId, DeploymentId
from services.shared.principal import Principal


@dataclass(frozen=True, slots=True)
class Bearer:
    """A key that is presented to other services on a tenant's behalf."""

    key: str = field(repr=False)


class Registry(Protocol):
    """auth: whose connections and deployments are whose. All methods raise BulkheadError."""

    async def register(self, bearer: Bearer, connection: ConnectionId) -> None:
        """Makes the connection the bearer's tenant's, so that keys can be issued for it."""
        ...

    async def retire(self, bearer: Bearer, connection: ConnectionId) -> None:
        """Revokes every key of the connection and lets none be issued again."""
        ...

    async def verify(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Returns when the deployment is the bearer's tenant's.

        Raises:
            NotFoundError: it is not, or there is none.
        """
        ...

    async def tenant_name(self, bearer: Bearer) -> str | None:
        """Returns the name of the bearer's tenant; None when the key may not read it."""
        ...


class Keys(Protocol):
    """auth: whose keys are valid (P-37)."""

    async def resolve(self, key_digest: bytes) -> Principal | None:
        """Returns whose key has the SHA-256 digest; None when no valid key has.

        Raises:
            UnavailableError: that cannot be found out now.
        """
        ...


class Act(StrEnum):
    """The methods that write into the audit log themselves, by their names."""

    VEND = "Vend"
    FINISH_AUTHORIZATION = "FinishAuthorization"


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One event on its way into the audit log of the key's tenant."""

    act: Act
    # SHA-256 of the key it is done with.
    key_digest: bytes = field(repr=False)
    peer: str
    # Ids by kind: deployment, binding, connection, token, authorization.
    resources: Mapping[str, str]
    trace_id: str
    # What the caller gave as its reason.
    purpose: str = ""


class AuditTrail(Protocol):
    """Where it is written down what is done, before it is done (P-33)."""

    async def record(self, records: Sequence[AuditRecord]) -> Sequence[bool]:
        """Returns, in order, whether each is written; False: its key is not valid any more.

        Raises:
            UnavailableError: they cannot be written now, so nothing of it may be done.
        """
        ...


class Gateway(Protocol):
    """The providers' OAuth endpoints. `parameters` fill the templates in the provider's URLs.

    All coroutines raise the ProviderErrors of the domain, and nothing else of the network's.
    """

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
        """Returns where a person allows it, with PKCE's S256 challenge (RFC 7636)."""
        ...

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
        ...

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
        ...

    async def client_credentials(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        scopes: Sequence[str],
    ) -> Grant:
        """Returns an access token for the client itself."""
        ...

    async def is_active(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        refresh_token: str,
    ) -> bool | None:
        """Returns whether a refresh token is still good (RFC 7662), without spending it.

        None: the provider does not tell.
        """
        ...

    async def revoke(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        token: str,
        hint: str,
    ) -> None:
        """Returns when the provider has withdrawn the token (RFC 7009).

        `hint` is `refresh_token` or `access_token`. Only for providers that declare it.
        """
        ...
