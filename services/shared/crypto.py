"""Envelope encryption (P-09): a data key per tenant, wrapped by a key-encryption key with an id.

What is sealed is AES-256-GCM (NIST SP 800-38D) under a random nonce, with tenant, table, row,
column and the data key's id as additional data: moved anywhere else, it does not open. A data key
is wrapped with its tenant's and its own id, and the key-encryption key's, as additional data.
"""

import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NewType, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.shared.ids import TenantId, random_text

DataKeyId = NewType("DataKeyId", str)
KekId = NewType("KekId", str)

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_VERSION: Final = b"\x01"
_SEALED: Final = "bulkhead.sealed.v1"
_WRAPPED: Final = "bulkhead.wrapped.v1"


class UnreadableError(Exception):
    """It was sealed with another key, for another place, or changed; says nothing of what it is."""


class UnknownKekError(UnreadableError):
    """It is under a key-encryption key that its holder does not have, or not yet."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a service's database something sealed belongs."""

    table: str
    # The row's primary key; of several columns, with a `/` between.
    row: str
    column: str


class TenantCipher:
    """A tenant's data key at work. Keep it no longer than the call that it was asked for."""

    def __init__(self, tenant: TenantId, data_key_id: DataKeyId, data_key: bytes) -> None:
        self.data_key_id = data_key_id
        self._tenant = tenant
        self._data_key = data_key
        self._cipher = AESGCM(data_key)
        self._hash_keys: dict[str, bytes] = {}

    def seal(self, place: Place, text: str) -> bytes:
        """Returns `text` sealed for its place: version, id of the data key, nonce, ciphertext."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return self._header + nonce + self._cipher.encrypt(nonce, text.encode(), self._bound(place))

    def open(self, place: Place, sealed: bytes) -> str:
        """Returns what `seal` was given.

        Raises:
            UnreadableError: it was not sealed by this data key for this place, or was changed.
        """
        header, rest = self._header, sealed[len(self._header) :]
        if sealed[: len(header)] != header:
            raise UnreadableError("it is not under this data key")
        nonce, body = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, body, self._bound(place)).decode()
        except (InvalidTag, ValueError) as error:
            raise UnreadableError("it was not sealed here for this") from error

    def keyed_hash(self, purpose: str, text: str) -> bytes:
        """Returns HMAC-SHA-256 under a key of its own, derived from the data key for `purpose`.

        Whoever has the text can find it again; the hash alone tells nothing, and nothing at all
        once the data key is destroyed.
        """
        key = self._hash_keys.get(purpose)
        if key is None:
            info = _bound_to("bulkhead.hash.v1", purpose)
            key = HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self._data_key)
            self._hash_keys[purpose] = key
        return hmac.digest(key, text.encode(), "sha256")

    @property
    def _header(self) -> bytes:
        named = self.data_key_id.encode()
        return _VERSION + bytes([len(named)]) + named

    def _bound(self, place: Place) -> bytes:
        return _bound_to(
            _SEALED, self._tenant, place.table, place.row, place.column, self.data_key_id
        )


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it is stored."""

    data_key_id: DataKeyId
    kek_id: KekId
    wrapped: bytes


class KeyEncryptionKeys(Protocol):
    """Whoever holds the key-encryption keys; the newest is current, the others open what is old."""

    # `file`, `mounted` or `transit`.
    holder: str

    async def current(self) -> KekId:
        """Returns the key under which new data keys are wrapped.

        Raises:
            UnavailableError: the holder is away.
        """
        ...

    async def known(self) -> Sequence[KekId]:
        """Returns the keys that can be used now, the current one first.

        Raises:
            UnavailableError: the holder is away.
        """
        ...

    async def wrap(self, data_key: bytes, bound: "KeyBinding") -> tuple[KekId, bytes]:
        """Returns the data key under the current key, bound to what `bound` and that key's id say.

        Raises:
            UnavailableError: the holder is away.
        """
        ...

    async def unwrap(self, kek_id: KekId, wrapped: bytes, bound: "KeyBinding") -> bytes:
        """Returns the data key.

        Raises:
            UnknownKekError: the holder has no such key.
            UnreadableError: it was wrapped by another or for another, or was changed.
            UnavailableError: the holder is away.
        """
        ...

    async def create(self) -> KekId:
        """Makes a new key, which is current from now on, in every process.

        Raises:
            FailedPreconditionError: the holder lets us make none.
            UnavailableError: the holder is away.
        """
        ...

    async def destroy(self, kek_id: KekId) -> None:
        """Destroys a key for good; who asks has made sure that nothing is under it.

        Raises:
            NotFoundError: there is none of that id.
            FailedPreconditionError: the holder lets us destroy none.
            UnavailableError: the holder is away.
        """
        ...


@dataclass(frozen=True, slots=True)
class KeyBinding:
    """Whose data key it is, and which."""

    tenant: TenantId
    data_key_id: DataKeyId

    def under(self, kek_id: KekId) -> bytes:
        """Returns the additional data with which the key is wrapped under `kek_id`."""
        return _bound_to(_WRAPPED, self.tenant, self.data_key_id, kek_id)


def new_data_key() -> tuple[DataKeyId, bytes]:
    """Returns `dek_…` and 256 random bits."""
    return DataKeyId(f"dek_{random_text()}"), secrets.token_bytes(KEY_BYTES)


def _bound_to(*parts: str) -> bytes:
    """Returns the parts, each behind its length, so that no two lists of them are the same."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
