"""What a process remembers of keys."""

from collections import OrderedDict
from dataclasses import dataclass

from services.shared.clock import SteadyClock
from services.shared.ids import KeyId
from services.shared.principal import Principal

# The same for a key that is nobody's as for one that is someone's: else how long an answer takes
# would tell whether a key that does not open this door opens another (P-04).
_REMEMBERED_SECONDS = 60.0
_MOST_REMEMBERED = 100_000


@dataclass(slots=True)
class Remembered:
    """An answer of auth: whose the key is, or that it is nobody's."""

    principal: Principal | None
    # By the steady clock.
    until: float
    # The last minute in which its use was reported.
    minute: int = 0


class KeyCache:
    """Answers of auth by digest, bounded in number and age; of each key under one digest only.

    Keys that are nobody's are kept apart, so that any number of them displaces no other.
    """

    def __init__(self, steady: SteadyClock, most: int = _MOST_REMEMBERED) -> None:
        self._steady = steady
        self._most = most
        self._known: OrderedDict[bytes, Remembered] = OrderedDict()
        self._unknown: OrderedDict[bytes, Remembered] = OrderedDict()
        self._digests: dict[KeyId, bytes] = {}
        # Dropped before their time, since the process began.
        self.forgotten = 0

    def __len__(self) -> int:
        return len(self._known) + len(self._unknown)

    def get(self, key_digest: bytes, now: float) -> Remembered | None:
        """Returns what is remembered of the key, unless it is too old."""
        entry = self._known.get(key_digest) or self._unknown.get(key_digest)
        return entry if entry is not None and now <= entry.until else None

    def put(self, key_digest: bytes, principal: Principal | None) -> None:
        """Remembers an answer of auth, for its time."""
        now = self._steady()
        entry = Remembered(principal, now + _REMEMBERED_SECONDS)
        self._drop(key_digest)
        if principal is None:
            self._unknown[key_digest] = entry
        else:
            # A key may have been given another secret: forgetting it must find all there is.
            if (former := self._digests.get(principal.key_id)) is not None:
                self._drop(former)
            self._digests[principal.key_id] = key_digest
            self._known[key_digest] = entry
        for entries in (self._known, self._unknown):
            self._make_room(entries, now)

    def _make_room(self, entries: OrderedDict[bytes, Remembered], now: float) -> None:
        """Drops the oldest: those that are too old to be answered, and those that are too many.

        All are kept for one time, so the oldest come first.
        """
        while entries:
            oldest = next(iter(entries))
            if len(entries) <= self._most and now <= entries[oldest].until:
                return
            self._drop(oldest)

    def forget(self, key_id: KeyId) -> None:
        """Forgets one key."""
        key_digest = self._digests.get(key_id)
        if key_digest is not None:
            self.forgotten += 1
            self._drop(key_digest)

    def clear(self) -> None:
        """Forgets everything."""
        self.forgotten += len(self)
        self._known.clear()
        self._unknown.clear()
        self._digests.clear()

    def _drop(self, key_digest: bytes) -> None:
        self._unknown.pop(key_digest, None)
        dropped = self._known.pop(key_digest, None)
        if dropped is not None and dropped.principal is not None:
            self._digests.pop(dropped.principal.key_id, None)
