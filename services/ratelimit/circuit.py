"""Who is asked: Valkey while it answers, this process alone for a while, then nobody.

One probe at a time asks a Valkey that is away, in the background; no call waits for it. Whatever
the state, nothing is ever admitted without being counted.
"""

import asyncio
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

import structlog
from opentelemetry import metrics

from services.ratelimit.checkpoints import RETAINED_US, Checkpoints
from services.ratelimit.domain import Reading, Take
from services.ratelimit.leases import Grant, Return, Returned, Want
from services.ratelimit.ledger import Ledger, OwnUse
from services.ratelimit.outage import Outage
from services.ratelimit.replay import Replay
from services.ratelimit.replicas import Replicas
from services.ratelimit.service import Counters
from services.shared.errors import UnavailableError

# Who is lost again so soon was not back: the time of the outage goes on.
_STEADY_SECONDS: Final = 5.0
# Probes in a row without an answer, until it is lost also for those who do not ask.
_MISSES: Final = 2
# A call waits no longer for what was used meanwhile to be brought to Valkey.
_RETURN_SECONDS: Final = 1.0


class State(StrEnum):
    """Who decides."""

    VALKEY = "valkey"
    LOCAL = "local"
    # What was admitted meanwhile is on its way to Valkey: calls wait.
    RETURNING = "returning"
    REFUSING = "refusing"


_LEVELS: Final = {State.VALKEY: 0, State.LOCAL: 1, State.RETURNING: 1, State.REFUSING: 2}


class CountersInValkey(Counters, Protocol):
    """The counters, and whether they are there."""

    async def check(self) -> None:
        """Returns when Valkey answers; UnavailableError otherwise."""
        ...


class Circuit:
    """Decides takes in Valkey, or here while Valkey is away, and remembers what was used."""

    def __init__(
        self,
        counters: CountersInValkey,
        ledger: Ledger,
        own: OwnUse,
        checkpoints: Checkpoints,
        replay: Replay,
        replicas: Replicas,
        outage_seconds: float,
    ) -> None:
        self._counters = counters
        self._ledger = ledger
        self._own = own
        self._checkpoints = checkpoints
        self._replay = replay
        self._replicas = replicas
        self._outage_seconds = outage_seconds
        self._state = State.VALKEY
        self._settled = asyncio.Event()
        self._outage: Outage | None = None
        # When this process began to see all calls that it decides: its start, or Valkey's return.
        self._seeing_since_us = _now_us()
        self._losses = 0
        self._misses = 0
        self._away_since = 0.0
        self._returned_at = float("-inf")
        meter = metrics.get_meter("bulkhead")
        self._level = meter.create_gauge("bulkhead.ratelimit.valkey_away")
        self._changes = meter.create_counter("bulkhead.ratelimit.valkey_changes", unit="{change}")
        self._level.set(0)

    @property
    def state(self) -> State:
        """Who decides at this moment."""
        return self._state

    def sharing(self) -> int:
        """Returns how many replicas share a limit while Valkey is away, this one with them.

        Raises:
            UnavailableError: this one has just started, and others do not know of it yet.
        """
        return self._replicas.number(time.monotonic())

    async def take(self, takes: Sequence[Take]) -> Sequence[Reading]:
        """Returns one reading per take, in order, from Valkey or decided here.

        Raises:
            UnavailableError: neither can be.
        """
        while True:
            if self._state is State.VALKEY:
                readings = await self._in_valkey(takes)
            elif self._state is State.LOCAL and self._outage is not None:
                readings = await self._here(self._outage, takes)
            else:
                await self._return()
                continue
            if readings is not None:
                return readings

    async def lease(self, wants: Sequence[Want]) -> Sequence[Grant]:
        """Returns one grant per want, in order. Without Valkey nothing is leased.

        Raises:
            UnavailableError: Valkey is away.
        """
        self._need_valkey()
        losses = self._losses
        try:
            grants = await self._counters.lease(wants)
        except UnavailableError:
            self._lose(losses)
            raise
        now_us = _now_us()
        for want, grant in zip(wants, grants, strict=True):
            self._ledger.note(want.deployment_id, want.tenant_id, grant.reading, now_us)
        return grants

    async def give_back(self, returns: Sequence[Return]) -> Sequence[Returned | None]:
        """Returns what came back per lease, in order. Without Valkey nothing comes back.

        Raises:
            UnavailableError: Valkey is away.
        """
        self._need_valkey()
        losses = self._losses
        try:
            return await self._counters.give_back(returns)
        except UnavailableError:
            self._lose(losses)
            raise

    async def check(self) -> None:
        """Returns as long as calls are decided.

        Raises:
            UnavailableError: they are refused.
        """
        if self._state is State.REFUSING:
            raise _away()

    async def look(self) -> None:
        """Asks Valkey whether it is there, and changes the state by the answer."""
        try:
            await self._counters.check()
            if self._state is not State.VALKEY:
                await self._replay.check()
        except UnavailableError:
            self._missed()
        else:
            self._misses = 0
            if self._state is not State.VALKEY:
                await self._come_back()

    async def _in_valkey(self, takes: Sequence[Take]) -> Sequence[Reading] | None:
        """Returns the readings; None when Valkey was lost meanwhile."""
        losses = self._losses
        try:
            readings = await self._counters.take(takes)
        except UnavailableError:
            self._lose(losses)
            return None
        now_us = _now_us()
        for take, reading in zip(takes, readings, strict=True):
            self._ledger.note(take.deployment_id, take.tenant_id, reading, now_us)
        return readings

    async def _here(self, outage: Outage, takes: Sequence[Take]) -> Sequence[Reading] | None:
        """Returns the readings; None when the outage was over meanwhile."""
        replicas = self.sharing()
        if wanted := outage.unknown(takes, _now_us()):
            month = outage.month
            outage.learn(await self._checkpoints.starts(wanted, month), takes, month)
        if self._state is not State.LOCAL or self._outage is not outage:
            return None
        return outage.decide(takes, replicas, _now_us())

    async def _return(self) -> None:
        """Waits until what was used meanwhile is in Valkey."""
        if self._state is not State.RETURNING:
            raise _away()
        try:
            async with asyncio.timeout(_RETURN_SECONDS):
                await self._settled.wait()
        except TimeoutError:
            raise _away() from None

    def _need_valkey(self) -> None:
        if self._state is not State.VALKEY:
            raise _away()

    def _lose(self, losses: int) -> None:
        """Decides here from now on, unless who failed began to ask before the last loss."""
        if self._state is not State.VALKEY or losses != self._losses:
            return
        self._losses += 1
        self._misses = 0
        now = time.monotonic()
        if now > self._returned_at + _STEADY_SECONDS:
            self._away_since = now
        self._outage = Outage(self._own, self._ledger, _now_us(), self._alone_since())
        self._change(State.LOCAL)
        self._end_outage()

    def _alone_since(self) -> int | None:
        """Returns since when all calls were this process's own; None when others decide too."""
        try:
            alone = self.sharing() == 1
        except UnavailableError:
            return None
        return max(self._seeing_since_us, _now_us() - RETAINED_US) if alone else None

    def _missed(self) -> None:
        self._misses += 1
        if self._misses >= _MISSES:
            self._lose(self._losses)
        self._end_outage()

    def _end_outage(self) -> None:
        over = time.monotonic() >= self._away_since + self._outage_seconds
        if over and self._state is State.LOCAL:
            self._change(State.REFUSING)

    async def _come_back(self) -> None:
        """Brings what was used meanwhile to Valkey, the last of it while calls wait; then opens."""
        before = self._state
        try:
            await self._replay.own()
            await self._replay_others()
            self._settled.clear()
            self._state = State.RETURNING
            await self._replay.own()
            self._open()
        except UnavailableError:
            self._missed()
        finally:
            if self._state is State.RETURNING:
                self._state = before
            self._settled.set()

    def _open(self) -> None:
        self._returned_at = time.monotonic()
        self._seeing_since_us = _now_us()
        self._outage = None
        self._change(State.VALKEY)

    async def replay_others(self) -> None:
        """Brings use of replicas that died, or are cut off, to Valkey.

        Raises:
            UnavailableError: that is not possible now.
        """
        if self._state is State.VALKEY:
            await self._replay.others()

    async def _replay_others(self) -> None:
        try:
            await self._replay.others()
        except UnavailableError:
            # They do it themselves, or whoever comes first once Postgres is back.
            structlog.get_logger().warning("use of other replicas is not replayed yet")

    def _change(self, state: State) -> None:
        self._state = state
        self._level.set(_LEVELS[state])
        self._changes.add(1, {"state": state})
        log = structlog.get_logger()
        (log.info if state is State.VALKEY else log.warning)("limits are decided by", state=state)


def _away() -> UnavailableError:
    return UnavailableError("the store of limits is away")


def _now_us() -> int:
    return time.time_ns() // 1_000
