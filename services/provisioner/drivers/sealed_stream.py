"""A stream of bytes under AES-256-GCM, in chunks: nothing of it is believed that was changed.

Each stream has a key of its own. A chunk's nonce is its number and whether it is the last, so that
chunks can be neither swapped nor left out, and no stream can be cut short (the STREAM construction
of Hoang, Reyhanitabar, Rogaway and Vizár, 2015).
"""

import io
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAGIC = b"bulkhead backup 1\n"
_SALT_BYTES = 32
_CHUNK_BYTES = 1 << 18
_TAG_BYTES = 16

# Returns the 32 bytes of the key for a stream with this salt.
KeyOf = Callable[[bytes], bytes]


class UnsealError(Exception):
    """The stream is not one that was sealed with this key, or not all of it."""


class SealedWriter:
    """Seals what is written to it; whole once it is finished."""

    def __init__(self, target: BinaryIO, key_of: KeyOf) -> None:
        salt = secrets.token_bytes(_SALT_BYTES)
        self._target = target
        self._cipher = AESGCM(key_of(salt))
        self._number = 0
        self._pending = bytearray()
        target.write(_MAGIC + salt)

    def write(self, content: bytes) -> int:
        """Seals every whole chunk that there is; returns how many bytes were taken: all."""
        self._pending += content
        # One chunk at least is kept back, for the last one is marked.
        while len(self._pending) > _CHUNK_BYTES:
            self._seal(bytes(self._pending[:_CHUNK_BYTES]), last=False)
            del self._pending[:_CHUNK_BYTES]
        return len(content)

    def finish(self) -> None:
        """Writes the last chunk; without it nobody believes the stream."""
        self._seal(bytes(self._pending), last=True)
        self._pending.clear()

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        self._target.write(self._cipher.encrypt(_nonce(self._number, last=last), chunk, _MAGIC))
        self._number += 1


class SealedReader(io.RawIOBase):
    """Reads what a `SealedWriter` wrote; hands out no byte that it has not checked."""

    def __init__(self, source: BinaryIO, key_of: KeyOf) -> None:
        super().__init__()
        magic, salt = source.read(len(_MAGIC)), source.read(_SALT_BYTES)
        if magic != _MAGIC or len(salt) != _SALT_BYTES:
            raise UnsealError
        self._source = source
        self._cipher = AESGCM(key_of(salt))
        self._number = 0
        self._next: bytes | None = source.read(_CHUNK_BYTES + _TAG_BYTES)
        self._open = b""

    def readable(self) -> bool:
        """Returns that it is."""
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        """Fills `buffer` as far as the chunk at hand goes; returns 0 at the checked end.

        Raises:
            UnsealError: the next chunk is not what was written, or is missing.
        """
        if not self._open and self._next is not None:
            self._open = self._unseal(self._next)
        view = memoryview(buffer).cast("B")
        length = min(len(view), len(self._open))
        view[:length] = self._open[:length]
        self._open = self._open[length:]
        return length

    def _unseal(self, chunk: bytes) -> bytes:
        following = self._source.read(_CHUNK_BYTES + _TAG_BYTES)
        last = not following
        try:
            opened = self._cipher.decrypt(_nonce(self._number, last=last), chunk, _MAGIC)
        except (InvalidTag, ValueError) as error:
            raise UnsealError from error
        self._number += 1
        self._next = None if last else following
        return opened


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
