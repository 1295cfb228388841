"""One refresh of one connection, fenced: a refresh token is spent once, whatever happens.

The connection's lock keeps others away; the attempt is written down before the provider is asked,
and what it answers is kept only where that attempt still stands. So whoever finds an attempt while
holding the lock knows that its outcome is unknown, and decides on purpose: see
docs/decisions/0014-fenced-refresh.md.
"""

from dataclasses import dataclass
from datetime import timedelta

from services.credentials.domain import (
    LEAST_LIFETIME,
    AnswerLostError,
    GrantRefusedError,
    ProviderAwayError,
    ProviderError,
    StateReason,
)
from services.credentials.opening import opened
from services.credentials.refresh import store
from services.credentials.refresh.asking import Asking, Question
from services.credentials.refresh.locks import HeldLock, RefreshLocks
from services.credentials.refresh.outcomes import RefreshOutcomes
from services.credentials.refresh.store import Fence
from services.credentials.refresh.terms import Fresh, Pace, RefreshObserver, RefreshPoint, Want
from services.credentials.refusals import away, beyond_ceiling, busy, not_active, unreadable
from services.credentials.standings import Standing
from services.shared.clock import steady_seconds
from services.shared.crypto import TenantCipher, UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.ids import random_text
from services.shared.postgres import Database

_NOW = timedelta(0)
_LATER = timedelta(seconds=5)


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found under the lock, and what is to be asked because of it."""

    want: Want
    question: Question
    cipher: TenantCipher
    fence: Fence

    @property
    def standing(self) -> Standing:
        """How the connection stands."""
        return self.question.standing


class FencedRefresh:
    """Refreshes connections, each under its lock."""

    def __init__(
        self,
        database: Database,
        data_keys: DataKeys,
        locks: RefreshLocks,
        asking: Asking,
        pace: Pace,
        observer: RefreshObserver,
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._locks = locks
        self._asking = asking
        self._pace = pace
        self._observer = observer
        self._outcomes = RefreshOutcomes(database, pace)

    async def run(self, want: Want, least: timedelta, patience: timedelta) -> Fresh:
        """Returns a token that lives for `least`, or for as long as the provider's do.

        Raises:
            BulkheadError: there is none; its reason and `retry_after` are for the caller.
        """
        cipher = await self._cipher(want)
        async with self._locks.hold(want.connection_id, patience) as lock:
            await self._observer.reached(RefreshPoint.LOCKED)
            read_at = steady_seconds()
            standing = await self._standing(want)
            if standing.kept is not None and standing.kept.lives(least):
                # Someone else was here before.
                return opened(standing, want.scope_key, cipher, read_at)
            found = await self._found(standing, want, cipher)
            return await self._attempt(found, lock, lost=await self._interrupted(found))

    async def _cipher(self, want: Want) -> TenantCipher:
        try:
            cipher = await self._data_keys.existing(want.tenant_id)
        except UnreadableError as error:
            raise unreadable(want.connection_id, error) from error
        if cipher is None:
            raise not_active()
        return cipher

    async def _standing(self, want: Want) -> Standing:
        async with self._database.tenant(want.tenant_id) as db:
            standing = await store.get_standing(db, want.connection_id, want.scope_key)
        if standing is None:
            raise not_active()
        if refusal := standing.refusal():
            raise refusal
        return standing

    async def _found(self, standing: Standing, want: Want, cipher: TenantCipher) -> _Found:
        if standing.wait > _NOW:
            raise away(standing.wait)
        fence = Fence(want.connection_id, standing.generation, standing.refresh_attempt)
        if not standing.renewable:
            if want.scope_key:
                raise beyond_ceiling()
            kind = standing.kind
            raise await self._outcomes.broken(want, fence, StateReason.EXPIRED, kind=kind)
        try:
            question = self._asking.question(standing, cipher, want.narrowed_to)
        except UnreadableError as error:
            await self._outcomes.broken(want, fence, StateReason.UNREADABLE)
            raise unreadable(want.connection_id, error) from error
        return _Found(want, question, cipher, fence)

    async def _interrupted(self, found: _Found) -> bool:
        """Returns whether the refresh token may be spent already, and nobody can tell.

        Raises:
            BulkheadError: it is spent, or it is too soon to find out.
        """
        standing = found.standing
        if standing.refresh_attempt is None or found.question.repeatable:
            return False
        if standing.kept is not None and standing.kept.lives(LEAST_LIFETIME):
            # What is at hand works, and to find out could cost it.
            raise away(_LATER)
        unsettled = self._pace.settle - (standing.refresh_since or _NOW)
        if unsettled > _NOW:
            raise away(unsettled, "a refresh was interrupted; soon it can be found out how it went")
        active = await self._active(found)
        if active is False:
            raise await self._outcomes.broken(found.want, found.fence, StateReason.REFRESH_LOST)
        return active is None

    async def _active(self, found: _Found) -> bool | None:
        try:
            return await self._asking.is_active(found.question)
        except ProviderError as error:
            raise await self._outcomes.put_off(
                found.question, found.fence, error, spent_nothing=False
            ) from error

    async def _attempt(self, found: _Found, lock: HeldLock, *, lost: bool) -> Fresh:
        """Asks the provider once. `lost`: whether an earlier attempt's outcome is unknown."""
        want, began = found.want, steady_seconds()
        fence = await self._marked(found)
        await self._observer.reached(RefreshPoint.MARKED)
        if lock.lost or steady_seconds() - began > self._pace.ask_within.total_seconds():
            await self._outcomes.put_aside(want, fence, lost=lost)
            raise busy()
        try:
            grant = await self._asking.ask(found.question)
        except GrantRefusedError as error:
            raise await self._outcomes.refused(error, want, fence, lost=lost) from error
        except (ProviderAwayError, AnswerLostError) as error:
            # What was unknown before is so still.
            known = isinstance(error, ProviderAwayError) and not lost
            raise await self._outcomes.put_off(
                found.question, fence, error, spent_nothing=known
            ) from error
        await self._observer.reached(RefreshPoint.ANSWERED)
        fresh = await self._outcomes.keep(found.question, grant, want, fence, found.cipher)
        await self._observer.reached(RefreshPoint.KEPT)
        return fresh

    async def _marked(self, found: _Found) -> Fence:
        attempt = random_text()
        async with self._database.tenant(found.want.tenant_id) as db:
            if not await store.begin_attempt(db, found.fence, attempt):
                raise busy()
        return Fence(found.fence.connection_id, found.fence.generation, attempt)
