"""The shape of a key: checked without I/O, so that garbage costs nothing.

`smcp_1t_` + 43 base-62 characters (256 random bits) + 6 base-62 characters of CRC-32 over all that
comes before. The digit is the version of the format, the letter the kind of key.
"""

import hashlib
import re
import secrets
import zlib

from services.shared.principal import KeyKind

DEFAULT_PREFIX = "smcp"
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SECRET_LENGTH = 43
_CHECKSUM_LENGTH = 6
_LETTERS = {
    KeyKind.OPERATOR: "o",
    KeyKind.TENANT: "t",
    KeyKind.DEPLOYMENT: "d",
    KeyKind.CONNECTION: "c",
    KeyKind.SESSION: "s",
    KeyKind.JOB: "j",
}
_SHAPE = re.compile(
    rf"[a-z]{{2,12}}_1[otdcsj]_[0-9A-Za-z]{{{_SECRET_LENGTH + _CHECKSUM_LENGTH}}}", re.ASCII
)

_ANYWHERE = re.compile(r"([a-z]{2,12}_1[otdcsj]_)[0-9A-Za-z]{8,}", re.ASCII)


def new_key(kind: KeyKind, prefix: str = DEFAULT_PREFIX) -> str:
    """Returns a new random key of `kind`."""
    secret = "".join(secrets.choice(_BASE62) for _ in range(_SECRET_LENGTH))
    body = f"{prefix}_1{_LETTERS[kind]}_{secret}"
    return body + _checksum(body)


def well_formed(key: str, prefix: str = DEFAULT_PREFIX) -> bool:
    """Whether `key` has the shape and the checksum of a key; says nothing about its validity."""
    if not key.startswith(f"{prefix}_") or _SHAPE.fullmatch(key) is None:
        return False
    return key[-_CHECKSUM_LENGTH:] == _checksum(key[:-_CHECKSUM_LENGTH])


def hint(key: str) -> str:
    """Returns what may be shown of a key: its readable prefix and the last four of its secret."""
    prefix = key[: -(_SECRET_LENGTH + _CHECKSUM_LENGTH)]
    return f"{prefix}…{key[-4:]}"


def without_keys(text: str) -> str:
    """Returns `text` with only the readable prefix of whatever in it may be a key.

    For what a person typed: a key is easily pasted where something else was asked for.
    """
    return _ANYWHERE.sub(r"\1…", text)


def digest(key: str) -> bytes:
    """Returns the SHA-256 of a key, by which services speak of it; the key itself stays outside."""
    return hashlib.sha256(key.encode()).digest()


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    text = ""
    for _ in range(_CHECKSUM_LENGTH):
        value, remainder = divmod(value, len(_BASE62))
        text = _BASE62[remainder] + text
    return text
