"""Secrets that are looked for afterwards: what a test plants may be in no output (P-09).

A canary carries a mark, and the mark is found in whatever form it got out: as it is, in hex, or in
base64, at whatever place it began there.
"""

import base64
import json
import secrets
from collections.abc import Iterable, Iterator
from typing import TypeAlias
from urllib.parse import quote

Secret: TypeAlias = str | bytes
MARK = "plantedcanary7q"


def canary(what: str) -> str:
    """Returns a new secret that is looked for, of visible ASCII."""
    return f"{MARK}-{what}-{secrets.token_hex(8)}"


# For tests that only need some secret; the same in every process, so that they may be parameters.
STATIC_TOKEN = f"{MARK}-static-token"
API_KEY = f"{MARK}-api-key"
CLIENT_SECRET = f"{MARK}-client-secret"
ACCESS_TOKEN = f"{MARK}-access-token"
REFRESH_TOKEN = f"{MARK}-refresh-token"
CODE = f"{MARK}-code"


def forms(secret: Secret) -> frozenset[str]:
    """Returns what is left of `secret` in the encodings that output may have."""
    plain = secret.encode() if isinstance(secret, str) else secret
    encoded = {plain.hex(), plain.hex().upper(), *_in_base64(plain)}
    if isinstance(secret, str):
        encoded |= {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}
    return frozenset(encoded)


def leaked(output: str, sought: Iterable[Secret] = (MARK,)) -> set[Secret]:
    """Returns those of `sought` that are in `output`, in any form."""
    return {secret for secret in sought if any(form in output for form in forms(secret))}


def _in_base64(plain: bytes) -> Iterator[str]:
    """Yields the characters that depend on `plain` alone, for each place where it can begin."""
    for before in range(3):
        padded = bytes(before) + plain
        whole = padded[: len(padded) - len(padded) % 3]
        encoded = base64.b64encode(whole).decode()[(before * 8 + 5) // 6 :]
        yield encoded
        yield encoded.translate(str.maketrans("+/", "-_"))
