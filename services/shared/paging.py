"""Lists in pages: how many, and from where on."""

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

from services.shared.errors import InvalidFieldError, Reason

MAX_PAGE_SIZE = 1_000
DEFAULT_PAGE_SIZE = 100

# When the last item shown was made, and its id: lists are ordered by both, newest first.
Position: TypeAlias = tuple[datetime, str]

_BINDING_BYTES = 12
_TIME = struct.Struct(">q")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ID = re.compile(rb"[a-z]{2,8}_[0-9a-z]{26}")


def page_size(value: int) -> int:
    """Returns how many items to list; 0 means 100.

    Raises:
        InvalidFieldError: not between 0 and 1,000.
    """
    if not 0 <= value <= MAX_PAGE_SIZE:
        raise InvalidFieldError("page_size", f"must be between 0 and {MAX_PAGE_SIZE}")
    return value or DEFAULT_PAGE_SIZE


def next_page_token(list_name: str, owner: str, positions: Sequence[Position], shown: int) -> str:
    """Returns an opaque token for what follows the first `shown` items; empty when nothing does.

    The token is bound to the list and its owner. That catches mistakes; it guards nothing, since a
    list is read under its owner's row-level security anyway.
    """
    if len(positions) <= shown:
        return ""
    at, item_id = positions[shown - 1]
    time = _TIME.pack((at - _EPOCH) // _MICROSECOND)
    raw = _binding(list_name, owner) + time + item_id.encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def page_position(list_name: str, owner: str, token: str) -> Position | None:
    """Returns the position after which the page begins; None for the first page.

    Raises:
        InvalidFieldError: the token is not from this list of this owner.
    """
    if not token:
        return None
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        return _position(raw, _binding(list_name, owner))
    except (binascii.Error, ValueError, OverflowError, struct.error) as error:
        raise InvalidFieldError(
            "page_token", "is not from this list", Reason.PAGE_TOKEN_INVALID
        ) from error


def _position(raw: bytes, binding: bytes) -> Position:
    time, item_id = raw[_BINDING_BYTES:][: _TIME.size], raw[_BINDING_BYTES + _TIME.size :]
    if raw[:_BINDING_BYTES] != binding or _ID.fullmatch(item_id) is None:
        raise ValueError("not made here")
    return _EPOCH + _TIME.unpack(time)[0] * _MICROSECOND, item_id.decode()


def _binding(list_name: str, owner: str) -> bytes:
    return hashlib.sha256(f"{list_name}\0{owner}".encode()).digest()[:_BINDING_BYTES]
