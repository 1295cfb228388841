"""How many processes share a limit while Valkey, where they meet, is away.

Too many is safe, too few is not: so one that was seen in the last minutes counts, and who has just
started waits until the others have heard of it.
"""

from collections import deque
from typing import Final, Protocol

from services.shared.errors import UnavailableError

BEAT_SECONDS: Final = 1.0
DEAD_AFTER_SECONDS: Final = 3.0
REMEMBERED_SECONDS: Final = 120.0


class Beats(Protocol):
    """Knows who lives."""

    async def beat(self, replica_id: str, dead_after_seconds: float) -> int:
        """Returns how many live, this one with them."""
        ...


class Replicas:
    """Counts the live replicas, once a second."""

    def __init__(self, beats: Beats, replica_id: str, remembered_seconds: float) -> None:
        self._beats = beats
        self._replica_id = replica_id
        self._remembered = remembered_seconds
        self._seen: deque[tuple[float, int]] = deque()
        self._known_since: float | None = None

    async def beat(self, now: float) -> None:
        """Says that this one lives, and counts; `now` are seconds of a clock that only goes on.

        Raises:
            UnavailableError: who lives cannot be found out.
        """
        self.note(await self._beats.beat(self._replica_id, DEAD_AFTER_SECONDS), now)

    def note(self, count: int, now: float) -> None:
        """Remembers that `count` live."""
        if self._known_since is None:
            self._known_since = now
        self._seen.append((now, count))
        while len(self._seen) > 1 and self._seen[0][0] < now - self._remembered:
            self._seen.popleft()

    def number(self, now: float) -> int:
        """Returns the most that were seen in the last minutes; the last number, if none was since.

        Raises:
            UnavailableError: the others cannot have heard of this one yet.
        """
        if self._known_since is None or now < self._known_since + 2 * BEAT_SECONDS:
            raise UnavailableError("this replica has just started; others do not know of it yet")
        while len(self._seen) > 1 and self._seen[0][0] < now - self._remembered:
            self._seen.popleft()
        return max(count for _, count in self._seen)
