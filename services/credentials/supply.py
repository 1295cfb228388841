"""From what is lent to a credential ready to be sent: as it is, or refreshed when about to end."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeAlias

from services.credentials.domain import LEAST_LIFETIME
from services.credentials.lending import Lent
from services.credentials.opening import opened
from services.credentials.providers.catalogue import Catalogue, Provider
from services.credentials.providers.clients import OperatorClients
from services.credentials.refresh.flights import Refreshes
from services.credentials.refresh.terms import Fresh, Want
from services.credentials.refusals import away, beyond_ceiling, not_active, unreadable
from services.credentials.standings import Standing
from services.credentials.vended import Vended, vended
from services.shared.crypto import TenantCipher, UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import BulkheadError
from services.shared.ids import TenantId

# What lives a little longer than it must survives being written into the audit log.
_COMFORTABLE = LEAST_LIFETIME + timedelta(seconds=5)
_LATER = timedelta(minutes=1)

# A refusal is an error that is told of one item instead of being raised.
Outcome: TypeAlias = Vended | BulkheadError


class Supply:
    """Makes what is lent ready to be sent."""

    def __init__(
        self,
        data_keys: DataKeys,
        catalogue: Catalogue,
        clients: OperatorClients,
        refreshes: Refreshes,
    ) -> None:
        self._data_keys = data_keys
        self._catalogue = catalogue
        self._clients = clients
        self._refreshes = refreshes

    async def supply(self, tenant: TenantId, lent: Sequence[Lent], read_at: float) -> list[Outcome]:
        """Returns, in order, what is ready, or why it is not.

        `read_at`, in steady seconds, is from when on what was read may have grown old.
        """
        if not lent:
            return []
        try:
            cipher = await self._data_keys.existing(tenant)
        except UnreadableError as error:
            return [unreadable(each.standing.connection_id, error) for each in lent]
        if cipher is None:
            return [not_active() for _ in lent]
        outcomes = [self._at_once(each, cipher, read_at) for each in lent]
        late = [number for number, outcome in enumerate(outcomes) if outcome is None]
        refreshed = await asyncio.gather(
            *(self._in_time(lent[number], cipher, read_at) for number in late)
        )
        for number, outcome in zip(late, refreshed, strict=True):
            outcomes[number] = outcome
        return [outcome or not_active() for outcome in outcomes]

    def _at_once(self, lent: Lent, cipher: TenantCipher, read_at: float) -> Outcome | None:
        """Returns what is ready, or refused, without asking anyone; None: someone must be asked."""
        standing, kept = lent.standing, lent.standing.kept
        enough = _COMFORTABLE if standing.renewable else LEAST_LIFETIME
        try:
            provider = self._provider(lent)
            if kept is None or not kept.lives(enough):
                return None
            fresh = opened(standing, lent.scope_key or "", cipher, read_at)
            return self._vended(lent, provider, cipher, fresh)
        except BulkheadError as error:
            return error

    async def _in_time(self, lent: Lent, cipher: TenantCipher, read_at: float) -> Outcome:
        standing, kept, scope_key = lent.standing, lent.standing.kept, lent.scope_key or ""
        try:
            fresh = await self._refreshed(standing, scope_key)
        except BulkheadError as error:
            if kept is None or not kept.lives(LEAST_LIFETIME):
                return error
            # It lives long enough, if not comfortably so.
            fresh = opened(standing, scope_key, cipher, read_at)
        try:
            return self._vended(lent, self._provider(lent), cipher, fresh)
        except BulkheadError as error:
            return error

    async def _refreshed(self, standing: Standing, scope_key: str) -> Fresh:
        if standing.wait > timedelta(0):
            raise away(standing.wait)
        want = Want(standing.tenant_id, standing.connection_id, standing.provider, scope_key)
        return await self._refreshes.fresh(want, _COMFORTABLE)

    def _provider(self, lent: Lent) -> Provider:
        """Returns the provider when what is lent can be had at all, and within its ceiling."""
        standing = lent.standing
        if refusal := standing.refusal():
            raise refusal
        provider = self._catalogue.get(standing.provider)
        if provider is None:
            raise away(_LATER, "the provider is not in the catalogue any more")
        narrows = provider.oauth is not None and provider.oauth.narrows_scopes
        if lent.narrowed and not (lent.scope_key and standing.renewable and narrows):
            raise beyond_ceiling()
        return provider

    def _vended(self, lent: Lent, provider: Provider, cipher: TenantCipher, fresh: Fresh) -> Vended:
        if lent.scope_ceiling and not (
            fresh.scopes is not None and lent.scope_ceiling.issuperset(fresh.scopes)
        ):
            raise beyond_ceiling()
        if fresh.left is not None and fresh.left < LEAST_LIFETIME:
            raise away(_LATER, "the provider's tokens live for less than a minute")
        client_id = lent.standing.client_id
        if client_id is None and (operators := self._clients.get(provider.name)) is not None:
            client_id = operators.client_id
        return vended(lent, provider, cipher, fresh, client_id or "")
