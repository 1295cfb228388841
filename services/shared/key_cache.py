"""What a process remembers of keys."""

from collections import OrderedDict
from dataclasses import dataclass

from services.shared.clock import SteadyClock
from services.shared.ids import KeyId
from services.shared.principal import Principal

_POSITIVE_SECONDS = 60.0
_NEGATIVE_SECONDS = 2.0
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
    """Answers of auth by digest, bounded in number and age; of each key under one digest only."""

    def __init__(self, steady: SteadyClock, most: int = _MOST_REMEMBERED) -> None:
        self._steady = steady
        self._most = most
        self._entries: OrderedDict[bytes, Remembered] = OrderedDict()
        self._digests: dict[KeyId, bytes] = {}

    def get(self, key_digest: bytes, now: float) -> Remembered | None:
        """Returns what is remembered of the key, unless it is too old."""
        entry = self._entries.get(key_digest)
        return entry if entry is not None and now <= entry.until else None

    def put(self, key_digest: bytes, principal: Principal | None) -> None:
        """Remembers an answer of auth, for its time."""
        seconds = _NEGATIVE_SECONDS if principal is None else _POSITIVE_SECONDS
        if principal is not None:
            # A key may have been given another secret: forgetting it must find all there is.
            self.forget(principal.key_id)
            self._digests[principal.key_id] = key_digest
        self._entries[key_digest] = Remembered(principal, self._steady() + seconds)
        self._entries.move_to_end(key_digest)
        while len(self._entries) > self._most:
            self._drop_oldest()

    def forget(self, key_id: KeyId) -> None:
        """Forgets one key."""
        key_digest = self._digests.pop(key_id, None)
        if key_digest is not None:
            self._entries.pop(key_digest, None)

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self._digests.clear()

    def _drop_oldest(self) -> None:
        _, oldest = self._entries.popitem(last=False)
        if oldest.principal is not None:
            self._digests.pop(oldest.principal.key_id, None)
