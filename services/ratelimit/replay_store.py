"""Counts in Valkey what was admitted without it."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Final

from redis.exceptions import NoScriptError

from services.ratelimit.ledger import LocalUse, Replayed
from services.ratelimit.months import KEPT_US, month_named
from services.ratelimit.store import Script, bucket_key, month_key
from services.shared.redis import Valkey, valkey_errors

# Script calls under way at once, of the client's connections.
_LANES: Final = 8
_PROBE_KEY: Final = "limit:{00}:probe"
_LEAST_KEPT_MS: Final = 60_000


class ReplayStore:
    """Runs `replay.lua`."""

    def __init__(self, valkey: Valkey, patience_seconds: float) -> None:
        self._valkey = valkey
        self._patience = patience_seconds
        self._script = Script.read("replay.lua")
        self._lanes = asyncio.Semaphore(_LANES)

    async def replay(self, uses: Sequence[LocalUse]) -> list[Replayed]:
        """Returns what Valkey counts with each, in order. To repeat it changes nothing.

        Raises:
            UnavailableError: Valkey is away; any of them may be counted.
        """
        counts = await asyncio.gather(*map(self._replay, uses))
        return [Replayed(use, counted) for use, counted in zip(uses, counts, strict=True)]

    async def check(self) -> None:
        """Returns when Valkey takes what is written.

        Raises:
            UnavailableError: it does not.
        """
        with valkey_errors():
            async with asyncio.timeout(self._patience):
                await self._valkey.set(_PROBE_KEY, "1", px=_LEAST_KEPT_MS)

    async def _replay(self, use: LocalUse) -> int:
        month = month_key(use.deployment_id, use.month)
        keys = (bucket_key(use.deployment_id), month, f"{month}:replayed")
        arguments = (use.replica_id, use.used, use.replayed, use.floor, *_ceiling(use))
        rest = (len(keys), *keys, *arguments, _kept_ms(use.month))
        with valkey_errors():
            async with self._lanes, asyncio.timeout(self._patience):
                return await self._run(rest)

    async def _run(self, rest: tuple[Any, ...]) -> int:
        try:
            return int(await self._valkey.execute_command("EVALSHA", self._script.digest, *rest))
        except NoScriptError:
            return int(await self._valkey.execute_command("EVAL", self._script.text, *rest))


def _ceiling(use: LocalUse) -> tuple[int, int]:
    return (
        (0, 0)
        if use.limits is None
        else (
            use.limits.ceiling.interval_us,
            use.limits.ceiling.burst,
        )
    )


def _kept_ms(month: str) -> int:
    left_us = month_named(month).ends_us + KEPT_US - time.time_ns() // 1_000
    return max(_LEAST_KEPT_MS, left_us // 1_000)
