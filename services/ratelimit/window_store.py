"""The windows' counters in Valkey: one atomic script per request."""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from importlib import resources
from typing import Any, Final

from redis.exceptions import NoScriptError

from services.ratelimit.windows import MICROSECONDS, Counted, Outcome, Window, window_at
from services.shared.errors import UnavailableError
from services.shared.redis import Valkey, valkey_errors

# Scripts under way at once; fewer than the client's connections, which others need too.
_LANES: Final = 8
# A window may end between two tries; one that ends every time is a clock that runs away.
_TRIES: Final = 4
_DIGEST_BYTES: Final = 16


def script_text() -> str:
    """Returns `window.lua`."""
    return (resources.files(__package__ or __name__) / "window.lua").read_text()


class WindowStore:
    """Counts hits of descriptors."""

    def __init__(self, valkey: Valkey, patience_seconds: float) -> None:
        self._valkey = valkey
        self._script = script_text()
        self._digest = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._patience = patience_seconds
        self._lanes = asyncio.Semaphore(_LANES)
        # How far the server's clock is ahead of ours.
        self._ahead_us = 0

    async def count(
        self, domain: str, wanted: Sequence[Counted], now_us: int | None = None
    ) -> list[Outcome]:
        """Returns one outcome per wanted count of `domain`, in order: all counted, or nothing.

        The time is the server's unless `now_us` (microseconds since the epoch) says otherwise.

        Raises:
            UnavailableError: Valkey is away, or slower than the patience. The hits may have been
                counted, never too few.
        """
        with valkey_errors():
            async with asyncio.timeout(self._patience), self._lanes:
                return await self._counted(domain, wanted, now_us)

    async def _counted(
        self, domain: str, wanted: Sequence[Counted], chosen_us: int | None
    ) -> list[Outcome]:
        now_us = chosen_us if chosen_us is not None else _local_us() + self._ahead_us
        for _ in range(_TRIES):
            windows = [window_at(each.unit, each.multiplier, now_us) for each in wanted]
            answer = await self._run(keys_of(domain, wanted, windows), wanted, windows, chosen_us)
            now_us, *numbers = map(int, answer.split())
            if chosen_us is None:
                self._ahead_us = now_us - _local_us()
            if numbers:
                return _outcomes(wanted, windows, now_us, numbers)
        raise UnavailableError("the clock of the store of limits does not hold still")

    async def _run(
        self,
        keys: Sequence[str],
        wanted: Sequence[Counted],
        windows: Sequence[Window],
        chosen_us: int | None,
    ) -> Any:
        arguments: list[str | int] = ["" if chosen_us is None else chosen_us]
        for each, window in zip(wanted, windows, strict=True):
            arguments += [window.begins_us, window.ends_us, each.limit, each.hits, each.mode.value]
        tail = (len(keys), *keys, *arguments)
        try:
            return await self._valkey.execute_command("EVALSHA", self._digest, *tail)
        except NoScriptError:
            # Valkey has restarted and forgot the script: its text teaches it again.
            return await self._valkey.execute_command("EVAL", self._script, *tail)


def _local_us() -> int:
    return time.time_ns() // 1_000


def keys_of(domain: str, wanted: Sequence[Counted], windows: Sequence[Window]) -> list[str]:
    """Returns where each count is; all of a domain in one slot."""
    # Digests: a domain may hold what would end the tag, and values are nobody else's business.
    tag = _digest(domain)
    return [
        f"limit:{{rls:{tag}}}:{_digest(each.counter)}:{window.begins_us // MICROSECONDS}"
        for each, window in zip(wanted, windows, strict=True)
    ]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _outcomes(
    wanted: Sequence[Counted], windows: Sequence[Window], now_us: int, numbers: Sequence[int]
) -> list[Outcome]:
    return [
        Outcome(bool(over), max(0, each.limit - count), window.ends_us - now_us)
        for each, window, over, count in zip(
            wanted, windows, numbers[::2], numbers[1::2], strict=True
        )
    ]
