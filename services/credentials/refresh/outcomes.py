"""What came of a refresh, written down under its fence, and said to who waits for it."""

import asyncio
import random
from dataclasses import replace
from datetime import timedelta

import structlog

from services.credentials.domain import (
    LEAST_LIFETIME,
    ConnectionKind,
    ConnectionState,
    Grant,
    GrantRefusedError,
    ProviderAwayError,
    ProviderError,
    StateReason,
)
from services.credentials.grant_store import put_access_token
from services.credentials.grants import refresh_place, sealed_token
from services.credentials.opening import opened
from services.credentials.refresh import store
from services.credentials.refresh.asking import Question
from services.credentials.refresh.store import Fence
from services.credentials.refresh.terms import Fresh, Pace, Want
from services.credentials.refusals import (
    away,
    beyond_ceiling,
    busy,
    needs_reauthorization,
    not_active,
)
from services.shared.clock import steady_seconds
from services.shared.crypto import TenantCipher
from services.shared.errors import BulkheadError, UnavailableError
from services.shared.postgres import Database

_FIRST_WAIT, _LONGEST_WAIT = timedelta(seconds=2), timedelta(minutes=5)
_LEAST_HEEDED, _LONGEST_HEEDED = timedelta(seconds=1), timedelta(minutes=15)
_MOST_DOUBLINGS = 10
# A provider whose tokens live too short to be vended is asked no more often.
_REST = timedelta(seconds=30)
_AGAIN_SECONDS = 0.2


class RefreshOutcomes:
    """Keeps what was granted, marks what broke, puts off what failed."""

    def __init__(self, database: Database, pace: Pace) -> None:
        self._database = database
        self._pace = pace

    async def keep(
        self,
        question: Question,
        grant: Grant,
        want: Want,
        fence: Fence,
        cipher: TenantCipher,
    ) -> Fresh:
        """Returns the granted token once it is kept; what was fenced off is discarded.

        The provider has answered, and nobody else has its answer: a database that is away is
        waited for.

        Raises:
            UnavailableError: the database was away for too long, or another refresh took over.
        """
        answered = steady_seconds()
        until = answered + self._pace.settle.total_seconds()
        while True:
            age = timedelta(seconds=steady_seconds() - answered)
            try:
                fresh = await self._kept(question, grant, want, fence, cipher, age)
            except UnavailableError:
                if steady_seconds() > until:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                break
        return fresh or await self._of_another(want, cipher)

    async def refused(
        self, error: GrantRefusedError, want: Want, fence: Fence, *, lost: bool
    ) -> BulkheadError:
        """Returns what to tell when the provider has said no, for good."""
        if want.scope_key and error.provider_error == "invalid_scope":
            # It was the scopes that it refused, and not the grant.
            await self.put_aside(want, fence, lost=lost)
            return beyond_ceiling()
        spent = lost and error.reason is StateReason.GRANT_REFUSED
        reason = StateReason.REFRESH_LOST if spent else error.reason
        return await self.broken(want, fence, reason, str(error))

    async def broken(
        self,
        want: Want,
        fence: Fence,
        reason: StateReason,
        why: str = "",
        kind: ConnectionKind = ConnectionKind.AUTHORIZATION_CODE,
    ) -> BulkheadError:
        """Returns what to tell of a connection that is of no use until it is authorized anew."""
        async with self._database.tenant(want.tenant_id) as db:
            if not await store.break_connection(db, fence, reason):
                return busy()
        structlog.get_logger().warning(
            "connection broken", connection_id=want.connection_id, reason=reason.value, why=why
        )
        return needs_reauthorization(reason, kind, want.connection_id)

    async def put_off(
        self, question: Question, fence: Fence, error: ProviderError, *, spent_nothing: bool
    ) -> BulkheadError:
        """Returns what to tell when the provider gave no answer; it is left alone for a while."""
        standing = question.standing
        wait = _wait(standing.refresh_failures, error)
        async with self._database.tenant(standing.tenant_id) as db:
            await store.put_off(db, fence, wait, spent_nothing=spent_nothing)
        structlog.get_logger().warning(
            "refresh failed",
            connection_id=standing.connection_id,
            provider=standing.provider,
            why=str(error),
            outcome_known=spent_nothing,
        )
        settles = timedelta(0) if spent_nothing or question.repeatable else self._pace.settle
        return away(max(wait, settles))

    async def put_aside(self, want: Want, fence: Fence, *, lost: bool) -> None:
        """Ends an attempt by which nothing was spent, without counting it as a failure."""
        async with self._database.tenant(want.tenant_id) as db:
            await store.put_off(db, fence, None, spent_nothing=not lost)

    async def _kept(
        self,
        question: Question,
        grant: Grant,
        want: Want,
        fence: Fence,
        cipher: TenantCipher,
        age: timedelta,
    ) -> Fresh | None:
        """Returns the token once it is kept; None when the fence has fallen."""
        token = sealed_token(
            cipher,
            want.connection_id,
            _aged(grant, age),
            question.asked,
            narrowed=bool(want.scope_key),
        )
        async with self._database.tenant(want.tenant_id) as db:
            state = await store.end_attempt(
                db,
                fence,
                sealed_refresh_token=_sealed_refresh_token(cipher, want, grant),
                scopes=None if want.scope_key else grant.scopes,
                rest=_rest(grant),
            )
            if state is None:
                return None
            ends, left = await put_access_token(
                db, want.tenant_id, want.connection_id, token, asked_at=None
            )
        if state is not ConnectionState.ACTIVE:
            raise not_active()
        scopes = None if token.scopes is None else tuple(token.scopes)
        return Fresh(grant.access_token, token.token_type, ends, left, scopes, steady_seconds())

    async def _of_another(self, want: Want, cipher: TenantCipher) -> Fresh:
        """Returns the token that someone else has kept meanwhile."""
        structlog.get_logger().warning(
            "a refresh came too late and was discarded", connection_id=want.connection_id
        )
        async with self._database.tenant(want.tenant_id) as db:
            standing = await store.get_standing(db, want.connection_id, want.scope_key)
        if standing is None or standing.kept is None or not standing.kept.lives(LEAST_LIFETIME):
            raise busy()
        if refusal := standing.refusal():
            raise refusal
        return opened(standing, want.scope_key, cipher, steady_seconds())


def _sealed_refresh_token(cipher: TenantCipher, want: Want, grant: Grant) -> bytes | None:
    if grant.refresh_token is None:
        return None
    return cipher.seal(refresh_place(want.connection_id), grant.refresh_token)


def _aged(grant: Grant, age: timedelta) -> Grant:
    if grant.expires_in is None:
        return grant
    return replace(grant, expires_in=max(grant.expires_in - age, timedelta(0)))


def _rest(grant: Grant) -> timedelta | None:
    too_short = grant.expires_in is not None and grant.expires_in < LEAST_LIFETIME
    return _REST if too_short else None


def _wait(failures: int, error: ProviderError) -> timedelta:
    """Returns how long to leave the provider alone: longer each time, never all at once."""
    longest = min(_FIRST_WAIT * (1 << min(failures, _MOST_DOUBLINGS)), _LONGEST_WAIT)
    wait = longest * random.uniform(0.5, 1)  # noqa: S311 spreads, hides nothing
    asked = error.retry_after if isinstance(error, ProviderAwayError) else None
    return wait if asked is None else max(wait, min(max(asked, _LEAST_HEEDED), _LONGEST_HEEDED))
