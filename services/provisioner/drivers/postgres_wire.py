"""As much of PostgreSQL's protocol as it takes to know a caller, and to refuse one in words.

From "Message Formats" of the PostgreSQL documentation, protocol 3: a connection begins with packets
that have a length and a number, but no type.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

# The server itself takes no longer ones.
MOST_STARTUP_BYTES = 10_000
UNENCRYPTED = b"N"
_HEADER_BYTES = 8
# A process id, and a key of 4 to 256 bytes.
_CANCEL_BYTES = range(_HEADER_BYTES + 8, _HEADER_BYTES + 4 + 256 + 1)
_MAJOR_VERSION = 3


class _Code(IntEnum):
    CANCEL = 80_877_102
    SSL = 80_877_103
    GSSENC = 80_877_104


class SqlState(StrEnum):
    """The ones that a caller is refused with here."""

    PROTOCOL_VIOLATION = "08P01"
    INVALID_AUTHORIZATION = "28000"
    INVALID_CATALOG_NAME = "3D000"
    TOO_MANY_CONNECTIONS = "53300"
    CANNOT_CONNECT_NOW = "57P03"


class WireError(Exception):
    """What was sent is not how a connection begins."""


@dataclass(frozen=True, slots=True)
class EncryptionRequest:
    """Asks whether the connection can be encrypted."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class CancelRequest:
    """Asks to cancel what another connection does; with the key in it, a secret."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Startup:
    """Says as whom, and to which database."""

    raw: bytes
    user: str
    database: str


Packet = EncryptionRequest | CancelRequest | Startup


def first_packet(received: bytes | bytearray) -> Packet | None:
    """Returns the packet that `received` begins with; None while it is not whole.

    Raises:
        WireError: it begins with none, or with too long a one.
    """
    if len(received) < _HEADER_BYTES:
        return None
    length, code = (int.from_bytes(received[at : at + 4], "big") for at in (0, 4))
    if not _HEADER_BYTES <= length <= MOST_STARTUP_BYTES:
        raise WireError("no packet is that long")
    if len(received) < length:
        return None
    return _packet(bytes(received[:length]), code)


def _packet(raw: bytes, code: int) -> Packet:
    if code in (_Code.SSL, _Code.GSSENC) and len(raw) == _HEADER_BYTES:
        return EncryptionRequest(raw)
    if code == _Code.CANCEL and len(raw) in _CANCEL_BYTES:
        return CancelRequest(raw)
    if code >> 16 == _MAJOR_VERSION:
        return _startup(raw)
    raise WireError("the protocol is unknown")


def _startup(raw: bytes) -> Startup:
    try:
        parameters = _parameters(raw[_HEADER_BYTES:].decode())
        user = parameters["user"]
    except (UnicodeDecodeError, KeyError) as error:
        raise WireError("the startup packet is malformed") from error
    return Startup(raw, user, parameters.get("database") or user)


def _parameters(text: str) -> Mapping[str, str]:
    """Names and values in turn, each ended by a zero, and one more at the end."""
    *fields, last, rest = text.split("\0")
    if last or rest or len(fields) % 2:
        raise WireError("the startup packet is malformed")
    return dict(zip(fields[::2], fields[1::2], strict=True))


def refusal(state: SqlState, message: str, hint: str = "") -> bytes:
    """Returns the ErrorResponse that ends a connection; people read it in psql."""
    fields = {"S": "FATAL", "V": "FATAL", "C": state, "M": message, "H": hint}
    body = "".join(f"{name}{value}\0" for name, value in fields.items() if value).encode() + b"\0"
    return b"E" + (len(body) + 4).to_bytes(4, "big") + body
