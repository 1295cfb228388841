"""What signs certificates of deletion, and what they can be checked with (P-39)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import OKPKey

from services.shared.keyring.private_files import ensure_private, read_private
from services.shared.settings import UnusableFileError

# RFC 9864, 2.2; its older name, EdDSA, leaves the curve open.
ALGORITHM: Final = "Ed25519"
# No certificate passes for another signed document, nor one of those for it (RFC 8725, 3.11).
TYPE: Final = "bulkhead-deletion+jwt"
_CURVE: Final = "Ed25519"


class CertificateKeys:
    """The key that signs now, and the public ones of before."""

    def __init__(self, current: OKPKey, former: Sequence[OKPKey] = ()) -> None:
        self._current = current
        self._public = {_id(key): key for key in (current, *former)}

    def sign(self, document: Mapping[str, Any]) -> str:
        """Returns the document as a JWS in compact form (RFC 7515, 3.1)."""
        header = {"alg": ALGORITHM, "kid": _id(self._current), "typ": TYPE}
        payload = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        return jws.serialize_compact(header, payload, self._current, algorithms=[ALGORITHM])

    def key_set(self) -> str:
        """Returns the public keys as a JSON Web Key Set (RFC 7517), the one that signs now first.

        Each is named by its thumbprint (RFC 7638).
        """
        keys = [
            {**key.as_dict(private=False), "kid": name, "alg": ALGORITHM, "use": "sig"}
            for name, key in self._public.items()
        ]
        return json.dumps({"keys": keys}, separators=(",", ":"))


def read_certificate_keys(file: Path, former: Path | None) -> CertificateKeys:
    """Returns the keys of these files.

    Args:
        file: the private key that signs, in PEM; made when it is missing.
        former: a JSON Web Key Set of public keys that signed before; None when there are none.

    Raises:
        UnusableFileError: others can read the private key, or one of them holds something else.
    """
    ensure_private(file, _new_key())
    return CertificateKeys(
        _private(file, read_private(file)), [] if former is None else _former(former)
    )


def _new_key() -> bytes:
    return Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )


def _private(file: Path, content: bytes) -> OKPKey:
    try:
        key = OKPKey.import_key(content)
    except (JoseError, ValueError) as error:
        raise UnusableFileError(f"{file}: it holds no Ed25519 key in PEM") from error
    if key.curve_name != _CURVE or not key.is_private:
        raise UnusableFileError(f"{file}: it holds no private Ed25519 key")
    return key


def _former(file: Path) -> list[OKPKey]:
    try:
        keys = [OKPKey.import_key(each) for each in json.loads(file.read_text())["keys"]]
    except OSError as error:
        raise UnusableFileError(f"{file}: {error.strerror}") from error
    except (JoseError, ValueError, KeyError, TypeError) as error:
        raise UnusableFileError(f"{file}: it holds no JSON Web Key Set of Ed25519 keys") from error
    if any(key.curve_name != _CURVE or key.is_private for key in keys):
        raise UnusableFileError(f"{file}: it must hold public Ed25519 keys alone")
    return keys


def _id(key: OKPKey) -> str:
    return key.thumbprint()
