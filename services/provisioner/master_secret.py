"""One secret from which all others are derived, so that none of them is stored."""

import base64
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from services.shared.settings import UnusableFileError

_KEY_BYTES = 32
_NONCE_BYTES = 12
_SALT_BYTES = 16
_LEAST_CHARACTERS = 32


class MasterSecretError(Exception):
    """What was sealed was not sealed with this secret, or not for this."""


class MasterSecret:
    """Derives keys and passwords by HKDF-SHA-256 (RFC 5869), a separate one for each use."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def password(self, *use: str) -> str:
        """Returns the password for `use`: 256 bits in 43 characters of the base64url alphabet."""
        return base64.urlsafe_b64encode(self._derived("password", *use)).rstrip(b"=").decode()

    def key(self, *use: str) -> bytes:
        """Returns the key for `use`: 256 bits."""
        return self._derived("key", *use)

    def salt(self, *use: str) -> bytes:
        """Returns the salt for `use`: the same each time, so that verifiers can be compared."""
        return self._derived("salt", *use)[:_SALT_BYTES]

    def seal(self, text: str, *, bound_to: str) -> bytes:
        """Returns `text` under AES-256-GCM; it opens only when it is still `bound_to` the same."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._cipher().encrypt(nonce, text.encode(), bound_to.encode())

    def open(self, sealed: bytes, *, bound_to: str) -> str:
        """Returns what `seal` was given.

        Raises:
            MasterSecretError: it was sealed with another secret, bound to something else, or
                changed.
        """
        nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
        try:
            return self._cipher().decrypt(nonce, body, bound_to.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise MasterSecretError("it was not sealed here for this") from error

    def _cipher(self) -> AESGCM:
        return AESGCM(self._derived("job-key"))

    def _derived(self, *use: str) -> bytes:
        info = "\0".join(("bulkhead provisioner", *use)).encode()
        return HKDF(SHA256(), _KEY_BYTES, salt=None, info=info).derive(self._secret)


def read_master_secret(file: Path) -> MasterSecret:
    """Returns the secret in `file`; a random one is written there first if there is no file.

    Raises:
        UnusableFileError: others can read the file, or it holds too little.
    """
    _ensure(file)
    with file.open("rb") as opened:
        if stat.S_IMODE(os.fstat(opened.fileno()).st_mode) & stat.S_IRWXO:
            raise UnusableFileError(f"{file}: everybody can read it; make it 0600")
        secret = opened.read().strip()
    if len(secret) < _LEAST_CHARACTERS:
        raise UnusableFileError(f"{file}: it needs at least {_LEAST_CHARACTERS} characters")
    return MasterSecret(secret)


def _ensure(file: Path) -> None:
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as opened:
        opened.write(secrets.token_urlsafe(_KEY_BYTES) + "\n")
        opened.flush()
        os.fsync(opened.fileno())
    try:
        # A link, not a rename: of two that start at once, the first one's secret stands.
        os.link(fresh, file)
    except FileExistsError:
        return
    finally:
        fresh.unlink()
