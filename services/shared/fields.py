"""Checks of request fields that every service shares; each failure names the field."""

import base64
import binascii
import hashlib

from services.shared.errors import InvalidFieldError, Reason

MAX_PAGE_SIZE = 1_000
DEFAULT_PAGE_SIZE = 100
_BINDING_BYTES = 12


def text(field: str, value: str, *, most: int, least: int = 1) -> str:
    """Returns `value` without surrounding space when it has `least` to `most` printable characters.

    Raises:
        InvalidFieldError: it has fewer, more, or control characters.
    """
    stripped = value.strip()
    if len(stripped) < least:
        raise InvalidFieldError(field, "must not be empty")
    if len(stripped) > most:
        raise InvalidFieldError(field, f"must have at most {most} characters")
    if not stripped.isprintable():
        raise InvalidFieldError(field, "must have printable characters only")
    return stripped


def page_size(value: int) -> int:
    """Returns how many items to list; 0 means 100.

    Raises:
        InvalidFieldError: not between 0 and 1,000.
    """
    if not 0 <= value <= MAX_PAGE_SIZE:
        raise InvalidFieldError("page_size", f"must be between 0 and {MAX_PAGE_SIZE}")
    return value or DEFAULT_PAGE_SIZE


def page_token(list_name: str, owner: str, cursor: str) -> str:
    """Returns an opaque token for `cursor`, bound to this list and its owner.

    The binding catches mistakes; it guards nothing, since a list is read under its owner's
    row-level security anyway.
    """
    raw = _binding(list_name, owner) + cursor.encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def page_cursor(list_name: str, owner: str, token: str) -> str | None:
    """Returns the cursor inside `token`; None for the first page.

    Raises:
        InvalidFieldError: the token is not of this list and owner.
    """
    if not token:
        return None
    invalid = InvalidFieldError("page_token", "is not from this list", Reason.PAGE_TOKEN_INVALID)
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        cursor = raw[_BINDING_BYTES:].decode()
    except (binascii.Error, ValueError) as error:
        raise invalid from error
    if raw[:_BINDING_BYTES] != _binding(list_name, owner):
        raise invalid
    return cursor


def _binding(list_name: str, owner: str) -> bytes:
    return hashlib.sha256(f"{list_name}\0{owner}".encode()).digest()[:_BINDING_BYTES]
