"""A credential on its way out: what to send, where to, and for how long."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from services.credentials.lending import Lent
from services.credentials.providers.catalogue import Provider
from services.credentials.providers.injection import Injected, injected
from services.credentials.providers.urls import filled
from services.credentials.refresh.terms import Fresh
from services.credentials.refusals import unreadable
from services.credentials.vend_audit import fingerprint
from services.shared.clock import steady_seconds
from services.shared.crypto import TenantCipher
from services.shared.ids import BindingId, ConnectionId


@dataclass(frozen=True, slots=True)
class Vended:
    """What a key is vended, and how the audit log knows it."""

    fresh: Fresh
    injected: Injected
    api_base_url: str
    provider: str
    connection_id: ConnectionId
    # None for a connection's key.
    binding_id: BindingId | None
    alias: str
    scope_key: str
    token_fingerprint: str = field(repr=False)

    @property
    def token_type(self) -> str:
        """As the provider calls it; how it is carried where it is no token."""
        return self.fresh.token_type or self.injected.token_type

    @property
    def expires_at(self) -> datetime | None:
        """By the database's clock; None: it does not expire."""
        return self.fresh.expires_at

    @property
    def lifetime(self) -> timedelta | None:
        """How long it lives from now on; None: it does not expire."""
        if self.fresh.left is None:
            return None
        return self.fresh.left - timedelta(seconds=steady_seconds() - self.fresh.known_at)


def vended(
    lent: Lent, provider: Provider, cipher: TenantCipher, fresh: Fresh, client_id: str
) -> Vended:
    """Returns the credential, ready to be sent.

    Raises:
        FailedPreconditionError: what is kept does not fit what the catalogue says by now.
    """
    standing = lent.standing
    try:
        carried = injected(provider, standing.kind, fresh.token, fresh.username, client_id)
        api_base_url = filled(provider.api_base_url, standing.parameters)
    except ValueError as error:
        raise unreadable(standing.connection_id, error) from error
    return Vended(
        fresh=fresh,
        injected=carried,
        api_base_url=api_base_url,
        provider=standing.provider,
        connection_id=standing.connection_id,
        binding_id=lent.binding_id,
        alias=lent.alias,
        scope_key=lent.scope_key or "",
        token_fingerprint=fingerprint(cipher, fresh.token),
    )
