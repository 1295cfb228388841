"""The transit engine of OpenBao or Vault, call by call; everything here blocks its thread."""

import base64
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import hvac
import requests
import structlog
from hvac import exceptions

from services.shared.errors import UnavailableError
from services.shared.keyring.private_files import Signature, read_private, signature
from services.shared.keyring.settings import KeyringSettings
from services.shared.settings import UnusableFileError, read_file

_TYPE: Final = "aes256-gcm96"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, slots=True)
class TransitKey:
    """How the key stands; a version that is too old for it decrypts nothing any more."""

    latest: int
    # None below decrypts any more, and none below this encrypts.
    oldest: int
    oldest_encrypting: int
    # Versions below are not only disallowed but gone.
    oldest_kept: int

    @property
    def versions(self) -> range:
        """The versions that can be used, oldest first."""
        return range(self.oldest, self.latest + 1)


class _NoSuchPathError(UnavailableError):
    """No such key, or no such engine."""


class TransitApi:
    """One connection to the engine, for one thread at a time.

    Every method raises UnavailableError when the engine is away or refuses our token.
    """

    def __init__(self, settings: KeyringSettings) -> None:
        self._key = settings.keyring_transit_key
        self._mount = settings.keyring_transit_mount
        self._token_file = settings.keyring_transit_token_file
        self._token_state: Signature | None = None
        self._client = hvac.Client(
            url=_checked(settings.keyring_transit_url),
            # Empty and not None: it would look for one in the environment and at home.
            token="",
            session=_session(settings.keyring_transit_ca_file),
            timeout=settings.keyring_transit_timeout_seconds,  # type: ignore[arg-type]
            # A redirect would carry the token to wherever it leads.
            allow_redirects=False,
        )

    def close(self) -> None:
        """Closes the connection."""
        self._client.adapter.close()

    def key(self) -> TransitKey | None:
        """Returns how the key stands; None when there is none of that name.

        Raises:
            UnusableFileError: it is no key that we can use.
        """
        try:
            found = self._asked(self._transit.read_key)
        except _NoSuchPathError:
            return None
        if found["type"] != _TYPE or found["derived"]:
            raise UnusableFileError(
                f"BULKHEAD_KEYRING_TRANSIT_KEY: {self._key} must be of type {_TYPE}, not derived"
            )
        return TransitKey(
            latest=found["latest_version"],
            oldest=max(found["min_decryption_version"], 1),
            oldest_encrypting=found["min_encryption_version"],
            oldest_kept=max(found["min_available_version"], 1),
        )

    def make_key(self) -> None:
        """Makes the key; one that is there stays as it is."""
        self._told(self._transit.create_key, key_type=_TYPE)

    def rotate(self) -> None:
        """Adds a version, which is the latest from now on."""
        self._told(self._transit.rotate_key)

    def encrypt(self, version: int, text: bytes, bound: bytes) -> bytes | None:
        """Returns the text under that version; None when it encrypts nothing any more."""
        try:
            answer = self._asked(
                self._transit.encrypt_data,
                plaintext=_base64(text),
                associated_data=_base64(bound),
                key_version=version,
            )
        except exceptions.InvalidRequest:
            return None
        return str(answer["ciphertext"]).encode()

    def decrypt(self, sealed: bytes, bound: bytes) -> bytes | None:
        """Returns what `encrypt` was given; None when it does not open."""
        try:
            answer = self._asked(
                self._transit.decrypt_data,
                ciphertext=sealed.decode("ascii", errors="replace"),
                associated_data=_base64(bound),
            )
        except exceptions.InvalidRequest:
            return None
        return base64.b64decode(answer["plaintext"])

    def trim(self, key: TransitKey, oldest: int) -> None:
        """Destroys every version below `oldest`, for good. It can be repeated.

        The engine trims no version that may still encrypt or decrypt; and what is disallowed
        already stays so.
        """
        change = self._transit.update_key_configuration
        decrypting = max(key.oldest, oldest)
        encrypting = max(key.oldest_encrypting, decrypting)
        # In this order: none may encrypt what it could not decrypt.
        self._told(change, min_encryption_version=encrypting)
        self._told(change, min_decryption_version=decrypting)
        self._told(self._transit.trim_key, min_version=oldest)

    @property
    def _transit(self) -> Any:
        return self._client.secrets.transit

    def _asked(self, call: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
        answer = self._told(call, **arguments)
        found = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(found, dict):
            raise _away("unexpected answer")
        return found

    def _told(self, call: Callable[..., Any], **arguments: Any) -> Any:
        self._present_token()
        with _errors():
            return call(name=self._key, mount_point=self._mount, **arguments)

    def _present_token(self) -> None:
        """Presents the token in the file, whoever has renewed it."""
        try:
            state = signature(self._token_file)
        except OSError as error:
            raise UnusableFileError(f"{self._token_file}: {error.strerror}") from error
        if state != self._token_state:
            self._client.token = _token(self._token_file)
            self._token_state = state


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except exceptions.InvalidRequest:
        raise
    except exceptions.InvalidPath as error:
        raise _NoSuchPathError("the transit engine has no such key, or is not there") from error
    # Whatever requests raises is an OSError.
    except (exceptions.VaultError, OSError) as error:
        raise _away(type(error).__name__) from error


def _away(problem: str) -> UnavailableError:
    structlog.get_logger().warning("the transit engine does not serve us", problem=problem)
    return UnavailableError("who holds the key-encryption keys is away, or refuses us")


def _token(file: Path) -> str:
    token = read_private(file).decode(errors="replace").strip()
    # What cannot be sent would be quoted in an error.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UnusableFileError(f"{file}: write a token into it, and nothing else")
    return token


def _session(authority: Path | None) -> requests.Session:
    session = requests.Session()
    # No proxy, no other certificates and no password out of the environment.
    session.trust_env = False
    session.verify = True
    if authority is not None:
        read_file(authority)
        session.verify = str(authority)
    return session


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return url.rstrip("/")
    raise UnusableFileError("BULKHEAD_KEYRING_TRANSIT_URL: https, or http on loopback")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
