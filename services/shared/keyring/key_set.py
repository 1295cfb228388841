"""Key-encryption keys at hand: AES-256-GCM (NIST SP 800-38D), each under its id (P-09)."""

import base64
import binascii
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.shared.crypto import KEY_BYTES, KekId, KeyBinding, UnknownKekError, UnreadableError
from services.shared.ids import random_text

_KEK_ID: Final = re.compile(r"kek_[0-9A-Za-z][0-9A-Za-z._-]{0,99}")
_NONCE_BYTES: Final = 12
_VERSION: Final = b"\x01"


@dataclass(frozen=True, slots=True)
class KeySet:
    """Some keys, and which of them is current."""

    current: KekId
    keys: Mapping[KekId, bytes] = field(repr=False)

    def known(self) -> tuple[KekId, ...]:
        """Returns the ids of the keys, the current one first."""
        return (self.current, *(kek for kek in self.keys if kek != self.current))

    def wrap(self, data_key: bytes, bound: KeyBinding) -> tuple[KekId, bytes]:
        """Returns the data key under the current key: version, nonce, ciphertext."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        cipher = AESGCM(self.keys[self.current])
        body = cipher.encrypt(nonce, data_key, bound.under(self.current))
        return self.current, _VERSION + nonce + body

    def unwrap(self, kek_id: KekId, wrapped: bytes, bound: KeyBinding) -> bytes:
        """Returns the data key.

        Raises:
            UnknownKekError: there is no such key here.
            UnreadableError: it was wrapped by another, for another, or changed.
        """
        if kek_id not in self.keys:
            raise UnknownKekError("no such key-encryption key is at hand")
        if wrapped[: len(_VERSION)] != _VERSION:
            raise UnreadableError("it is not wrapped as we do it")
        rest = wrapped[len(_VERSION) :]
        nonce, body = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        try:
            return AESGCM(self.keys[kek_id]).decrypt(nonce, body, bound.under(kek_id))
        except (InvalidTag, ValueError) as error:
            raise UnreadableError("it was not wrapped for this by that key") from error


def new_kek() -> tuple[KekId, bytes]:
    """Returns `kek_…` and 256 random bits."""
    return KekId(f"kek_{random_text()}"), secrets.token_bytes(KEY_BYTES)


def kek_id(text: str) -> KekId | None:
    """Returns `text` as an id when it has the shape of one."""
    return KekId(text) if _KEK_ID.fullmatch(text) else None


def key_of(text: bytes) -> bytes | None:
    """Returns the key that `text` is the base64 of; None when it is not 256 bits."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        return None
    return key if len(key) == KEY_BYTES else None


def text_of(key: bytes) -> str:
    """Returns the key as base64."""
    return base64.b64encode(key).decode()
