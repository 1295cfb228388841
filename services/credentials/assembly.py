"""Vending, put together from what it needs."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from services.credentials.last_vends import LastVends
from services.credentials.ports import AuditTrail, Gateway
from services.credentials.providers.catalogue import Catalogue
from services.credentials.providers.clients import OperatorClients
from services.credentials.providers.places import Places
from services.credentials.refresh.asking import Asking
from services.credentials.refresh.fenced import FencedRefresh
from services.credentials.refresh.flights import Refreshes, open_refreshes
from services.credentials.refresh.locks import RefreshLocks
from services.credentials.refresh.terms import Pace, RefreshObserver
from services.credentials.settings import Settings
from services.credentials.supply import Supply
from services.credentials.upkeep import forget_old, refresh_ahead
from services.credentials.vend_audit import VendAudit
from services.credentials.vending import Vending
from services.shared.background import background
from services.shared.data_keys import DataKeys
from services.shared.postgres import Database

_MARGIN = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Needs:
    """What vending is built upon."""

    database: Database
    data_keys: DataKeys
    catalogue: Catalogue
    clients: OperatorClients
    gateway: Gateway
    trail: AuditTrail
    locks: RefreshLocks
    observer: RefreshObserver


@dataclass(frozen=True, slots=True)
class VendingParts:
    """Vending at work, and the refreshes for it."""

    vending: Vending
    refreshes: Refreshes


@asynccontextmanager
async def open_vending(settings: Settings, needs: Needs) -> AsyncIterator[VendingParts]:
    """Yields vending, its upkeep at work; refreshes under way at the end come to theirs."""
    answer = timedelta(seconds=settings.provider_timeout_seconds)
    # A provider that may still answer is at it still, whatever the setting says.
    settle = max(timedelta(seconds=settings.refresh_settle_seconds), answer + _MARGIN)
    pace = Pace(settle, answer)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        places = Places(settings.refresh_pool_size)
        fenced = _fenced(needs, pace)
        refreshes = await enter(open_refreshes(fenced, needs.locks, places, pace))
        supply = Supply(needs.data_keys, needs.catalogue, needs.clients, refreshes)
        last_vends = LastVends(needs.database)
        loops = (
            last_vends.run(),
            refresh_ahead(needs.database, refreshes),
            forget_old(needs.database),
        )
        await enter(background(*loops))
        vending = Vending(
            needs.database, needs.data_keys, supply, VendAudit(needs.trail), last_vends
        )
        yield VendingParts(vending, refreshes)


def _fenced(needs: Needs, pace: Pace) -> FencedRefresh:
    asking = Asking(needs.catalogue, needs.clients, needs.gateway)
    return FencedRefresh(needs.database, needs.data_keys, needs.locks, asking, pace, needs.observer)
