"""The pepper: without it nobody can tell from a copy of the database what a key is."""

import hashlib
import hmac
from collections.abc import Sequence

_LEAST_PEPPER_BYTES = 32
_ID_LABEL = b"bulkhead pepper id\0"
_ID_DIGITS = 8


class Pepper:
    """Turns a key's digest into what is stored, so that the store alone proves no key."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < _LEAST_PEPPER_BYTES:
            raise ValueError(f"the pepper must have at least {_LEAST_PEPPER_BYTES} bytes")
        self._secret = secret
        # Tells two peppers apart; of what they are it tells nothing.
        self.id = hashlib.sha256(_ID_LABEL + secret).hexdigest()[:_ID_DIGITS]

    def apply(self, key_digest: bytes) -> bytes:
        """Returns HMAC-SHA-256 of the digest under the pepper."""
        return hmac.new(self._secret, key_digest, hashlib.sha256).digest()


class Keyring:
    """The peppers that keys may be stored under.

    New keys are stored under `current`, and keys under a `previous` one move to it when they are
    used. What is under `upcoming` is only found: a replica that is not told yet to write under the
    next pepper must know the keys of those that are.
    """

    def __init__(
        self, current: Pepper, previous: Sequence[Pepper] = (), upcoming: Pepper | None = None
    ) -> None:
        known = [current, *previous, *([upcoming] if upcoming is not None else [])]
        if len({pepper.id for pepper in known}) != len(known):
            raise ValueError("the same pepper is named twice")
        self.current = current
        self._known = known
        self._previous = frozenset(pepper.id for pepper in previous)

    @property
    def ids(self) -> list[str]:
        """The ids of the peppers, the current one first."""
        return [pepper.id for pepper in self._known]

    def candidates(self, key_digest: bytes) -> list[bytes]:
        """Returns what the key may be stored as, by each pepper, in the order of `ids`."""
        return [pepper.apply(key_digest) for pepper in self._known]

    def is_previous(self, place: int) -> bool:
        """Whether a key that was found as the candidate at `place` is to move to `current`."""
        return self._known[place].id in self._previous
