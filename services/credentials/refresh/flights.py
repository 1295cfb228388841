"""Refreshes under way in this process: one at a time for each token, whoever waits for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from datetime import timedelta

import structlog
from opentelemetry import metrics

from services.credentials.providers.places import Places
from services.credentials.refresh.fenced import FencedRefresh
from services.credentials.refresh.locks import RefreshLocks
from services.credentials.refresh.terms import Fresh, Pace, Want
from services.credentials.refusals import beyond_ceiling, busy
from services.shared.clock import SteadyClock, steady_seconds
from services.shared.deadline import time_remaining
from services.shared.errors import BulkheadError, Reason

# Kept back of the caller's time, for the audit log and the way home.
_KEPT_BACK_SECONDS = 1.0
# For how long a provider that refused scopes is not asked for them again.
_REFUSED_SECONDS = 60.0
_MOST_REFUSED = 10_000


class Refreshes:
    """Gets tokens refreshed; a refresh goes on when its callers have left.

    To cancel one half-way would leave its outcome unknown.
    """

    def __init__(
        self,
        fenced: FencedRefresh,
        locks: RefreshLocks,
        places: Places,
        pace: Pace,
        clock: SteadyClock = steady_seconds,
    ) -> None:
        self._fenced = fenced
        self._locks = locks
        self._places = places
        self._pace = pace
        self._clock = clock
        self._flights: dict[Want, asyncio.Task[Fresh]] = {}
        self._refused: dict[Want, float] = {}
        self._counter = metrics.get_meter("bulkhead").create_counter(
            "bulkhead.credentials.refreshes", description="refreshes that ended, by outcome"
        )

    async def fresh(self, want: Want, least: timedelta) -> Fresh:
        """Returns a token that lives for `least`, or for as long as the provider's do.

        Raises:
            BulkheadError: there is none, or none before the caller's deadline.
        """
        if self._clock() < self._refused.get(want, 0.0):
            raise beyond_ceiling()
        flight = self._flights.get(want) or self._started(want, least)
        remaining = time_remaining()
        patience = None if remaining is None else max(0.0, remaining - _KEPT_BACK_SECONDS)
        done, _ = await asyncio.wait([flight], timeout=patience)
        if not done:
            raise busy()
        return flight.result()

    async def ahead(self, want: Want, least: timedelta) -> None:
        """Returns once the token was refreshed, or left to others who are at it.

        What comes of it, its next vend will tell.
        """
        if not self._locks.held_here(want.connection_id):
            await asyncio.wait([self._flights.get(want) or self._started(want, least)])

    async def aclose(self) -> None:
        """Returns once no refresh is under way."""
        while self._flights:
            await asyncio.wait(list(self._flights.values()))

    def _started(self, want: Want, least: timedelta) -> asyncio.Task[Fresh]:
        # A fresh context: it has no single caller, whose key and deadline it could take along.
        flight = Context().run(asyncio.get_running_loop().create_task, self._refreshed(want, least))
        self._flights[want] = flight
        flight.add_done_callback(lambda done: self._landed(want, done))
        return flight

    async def _refreshed(self, want: Want, least: timedelta) -> Fresh:
        patience = self._pace.whole
        async with self._places.take(want.tenant_id, want.provider, patience):
            return await self._fenced.run(want, least, patience)

    def _landed(self, want: Want, flight: asyncio.Task[Fresh]) -> None:
        del self._flights[want]
        self._told(want, flight)

    def _told(self, want: Want, flight: asyncio.Task[Fresh]) -> None:
        error = None if flight.cancelled() else flight.exception()
        outcome = error.reason if isinstance(error, BulkheadError) else type(error).__name__
        self._counter.add(1, {"outcome": "OK" if error is None else outcome})
        if error is not None and not isinstance(error, BulkheadError):
            structlog.get_logger().error(
                "a refresh failed", connection_id=want.connection_id, exc_info=error
            )
        if isinstance(error, BulkheadError) and error.reason is Reason.SCOPE_CEILING:
            while len(self._refused) >= _MOST_REFUSED:
                del self._refused[next(iter(self._refused))]
            self._refused[want] = self._clock() + _REFUSED_SECONDS


@asynccontextmanager
async def open_refreshes(
    fenced: FencedRefresh, locks: RefreshLocks, places: Places, pace: Pace
) -> AsyncIterator[Refreshes]:
    """Yields refreshes; those that are under way at the end come to theirs."""
    refreshes = Refreshes(fenced, locks, places, pace)
    try:
        yield refreshes
    finally:
        await refreshes.aclose()
