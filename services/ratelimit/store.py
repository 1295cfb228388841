"""The counters in Valkey: one atomic script per deployment, many in one round trip."""

import asyncio
import hashlib
from collections.abc import Sequence
from datetime import timedelta
from importlib import resources
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from services.ratelimit.domain import Decision, Reading, Take
from services.ratelimit.months import moment
from services.shared.redis import valkey_errors

# Round trips under way at once; fewer than the client's connections, which do not queue.
_LANES: Final = 32
_DECISIONS: Final = (Decision.ALLOWED, Decision.BURST_EXCEEDED, Decision.QUOTA_EXCEEDED)


def script_text() -> str:
    """Returns `acquire.lua`."""
    return (resources.files(__package__ or __name__) / "acquire.lua").read_text()


class CounterStore:
    """Takes calls from the counters of deployments."""

    def __init__(self, valkey: Redis, script: str, patience_seconds: float) -> None:
        self._valkey = valkey
        self._script = script
        self._digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._patience = patience_seconds
        self._lanes = asyncio.Semaphore(_LANES)

    async def take(self, takes: Sequence[Take], now_us: int | None = None) -> list[Reading]:
        """Returns one reading per take, in order; takes of one deployment are decided in order.

        The time is the server's unless `now_us` (microseconds since the epoch) says otherwise.

        Raises:
            UnavailableError: Valkey is away, or slower than the patience. Some of the calls may
                have been counted, never too few.
        """
        with valkey_errors():
            async with asyncio.timeout(self._patience), self._lanes:
                return [_reading(answer) for answer in await self._answers(takes, now_us)]

    async def check(self) -> None:
        """Returns when Valkey answers.

        Raises:
            UnavailableError: it is away.
        """
        with valkey_errors():
            async with asyncio.timeout(self._patience), self._lanes:
                await self._valkey.ping()

    async def _answers(self, takes: Sequence[Take], now_us: int | None) -> list[Any]:
        answers = await self._round_trip(("EVALSHA", self._digest), takes, now_us)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            # Valkey has restarted and forgot the script: its text teaches it again.
            again = [takes[at] for at in unknown]
            late = await self._round_trip(("EVAL", self._script), again, now_us)
            for at, answer in zip(unknown, late, strict=True):
                answers[at] = answer
        return answers

    async def _round_trip(
        self, command: tuple[str, str], takes: Sequence[Take], now_us: int | None
    ) -> list[Any]:
        async with self._valkey.pipeline(transaction=False) as pipeline:
            for take in takes:
                pipeline.execute_command(*command, 1, _key(take), *_arguments(take, now_us))
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


def _key(take: Take) -> str:
    return f"limit:{{{take.deployment_id}}}:gcra"


def _arguments(take: Take, now_us: int | None) -> tuple[int, ...]:
    limits = take.limits
    monthly = -1 if limits.monthly is None else limits.monthly
    arguments = (limits.ceiling.interval_us, limits.ceiling.burst, monthly, take.cost)
    return arguments if now_us is None else (*arguments, now_us)


def _reading(answer: Any) -> Reading:
    if isinstance(answer, Exception):
        raise answer
    decision, wait_us, used, burst_remaining, now_us = map(int, answer.split())
    # 0: admitted; -1: no wait will help.
    wait = timedelta(microseconds=wait_us) if wait_us > 0 else None
    return Reading(_DECISIONS[decision], wait, used, burst_remaining, moment(now_us))
