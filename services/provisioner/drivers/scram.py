"""Passwords for Postgres as it stores them, so that the password itself is never sent or logged."""

import base64
import hashlib
import hmac

_ITERATIONS = 4096


def verifier(password: str, salt: bytes) -> str:
    """Returns the SCRAM-SHA-256 verifier of an ASCII `password` (RFC 5803, RFC 7677)."""
    salted = hashlib.pbkdf2_hmac("sha256", password.encode("ascii"), salt, _ITERATIONS)
    stored_key = hashlib.sha256(_mac(salted, b"Client Key")).digest()
    server_key = _mac(salted, b"Server Key")
    return f"SCRAM-SHA-256${_ITERATIONS}:{_text(salt)}${_text(stored_key)}:{_text(server_key)}"


def _mac(key: bytes, message: bytes) -> bytes:
    return hmac.new(key, message, hashlib.sha256).digest()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
