"""The pepper: without it nobody can tell from a copy of the database what a key is."""

import hashlib
import hmac

_LEAST_PEPPER_BYTES = 32


class Pepper:
    """Turns a key's digest into what is stored, so that the store alone proves no key."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) < _LEAST_PEPPER_BYTES:
            raise ValueError(f"the pepper must have at least {_LEAST_PEPPER_BYTES} bytes")
        self._secret = secret

    def apply(self, key_digest: bytes) -> bytes:
        """Returns HMAC-SHA-256 of the digest under the pepper."""
        return hmac.new(self._secret, key_digest, hashlib.sha256).digest()
