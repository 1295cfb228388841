"""The driver, bounded: a huge row must not fill our memory (P-38)."""

import asyncio
import struct
from typing import TYPE_CHECKING, Any

import asyncpg

from services.app_proxy.database.allowance import Allowance
from services.app_proxy.database.codecs import as_string

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

_RECORD_OID = 2249
# `pg_type.typtype` of composites, ranges and multiranges.
_COMPOUND = (b"c", b"r", b"m")


# A message of Postgres: its kind, and its length without the kind (protocol 3.0, 55.2).
_HEADER = struct.Struct("!cI")
_ROW = b"D"
# Notices and notifications: nobody here reads them.
_UNREAD = (b"N", b"A")


class ByteGuard(asyncio.Protocol):
    """Stands before the driver's protocol, and keeps from it what is too much.

    The driver decodes each row as it arrives, and Postgres has no limit on a row's size short of a
    gigabyte; so the limits are here, where the bytes arrive. Rows beyond theirs are counted and
    thrown away by their length, undecoded; beyond the limit of all bytes the connection is cut.
    """

    def __init__(self, driver: Any, transport: Any) -> None:
        self._driver = driver
        self._transport = transport
        self._left: int | None = None
        self._row_bytes: int | None = None
        # Of the message that is passing: bytes to come, and whether the driver gets them.
        self._coming = 0
        self._kept = True
        self._is_row = False
        self._header = b""
        # Rows with arrays are held until they are whole: only then are their elements counted.
        self._elements: int | None = None
        self._held = bytearray()
        self.allowance = Allowance()
        self.overrun = False
        self.rows_left_out = 0

    def allow(self, size: int | None) -> None:
        """Sets the budget of all bytes; None: no limit, on rows neither."""
        self._left = size
        self.allow_rows(None)
        self.allowance.allow(None)

    def allow_rows(self, size: int | None, elements: int | None = None) -> None:
        """Sets the budget of rows: bytes, and elements of arrays in them; None: no limit."""
        self._row_bytes, self._elements = size, elements
        self.rows_left_out = 0

    def data_received(self, data: bytes) -> None:
        """Passes `data` on, unless it is more than is allowed."""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.overrun = True
                self._transport.abort()
                return
        with self.allowance.charged():
            kept = self._sifted(data)
            if kept:
                self._driver.data_received(kept)

    def _sifted(self, received: bytes) -> bytes:
        """Returns the part of `received` that the driver gets."""
        data, self._header = self._header + received, b""
        kept, at = bytearray(), 0
        while at < len(data):
            if not self._coming:
                if len(data) - at < _HEADER.size:
                    self._header = data[at:]
                    break
                kind, length = _HEADER.unpack_from(data, at)
                self._is_row, self._coming = kind == _ROW, 1 + length
                self._kept = self._admits(kind, length)
            end = min(at + self._coming, len(data))
            self._coming -= end - at
            if self._kept:
                kept += self._counted(data[at:end])
            at = end
        return bytes(kept)

    def _counted(self, part: bytes) -> bytes:
        """Returns `part`, or for a row of arrays: nothing, until it is whole and admitted."""
        if self._elements is None or not self._is_row:
            return part
        self._held += part
        if self._coming:
            return b""
        row, self._held = bytes(self._held), bytearray()
        # In Postgres's text form each element but the first has a comma before it.
        self._elements -= row.count(b",")
        if self._elements >= 0:
            return row
        self.rows_left_out += 1
        return b""

    def _admits(self, kind: bytes, length: int) -> bool:
        if not self._is_row:
            return kind not in _UNREAD
        if self._row_bytes is None:
            return True
        self._row_bytes -= length
        # One that is left out leaves out all that follow.
        if self._row_bytes >= 0 and not self.rows_left_out and not self.allowance.out_of_time:
            return True
        self.rows_left_out += 1
        return False

    def eof_received(self) -> bool | None:
        """Passes the end on."""
        closed: bool | None = self._driver.eof_received()
        return closed

    def connection_lost(self, exc: Exception | None) -> None:
        """Passes the loss on."""
        self._driver.connection_lost(exc)

    def pause_writing(self) -> None:
        """Passes the request on."""
        self._driver.pause_writing()

    def resume_writing(self) -> None:
        """Passes the request on."""
        self._driver.resume_writing()


class GuardedConnection(_Connection):
    """The driver's connection, with a byte guard before it, and in text where it must be.

    The driver has no public way to any of this: `test_app_proxy_statements` fails if what is used
    of it here is renamed.
    """

    __slots__ = ("guard",)

    guard: ByteGuard

    def prepare_session(self) -> None:
        """Puts the guard between the transport and the driver; makes anonymous records text."""
        transport, driver = self._transport, self._protocol  # type: ignore[attr-defined]
        self.guard = ByteGuard(driver, transport)
        transport.set_protocol(self.guard)
        self._speak_text(_RECORD_OID, "record", "pg_catalog")

    async def _introspect_types(self, typeoids: Any, timeout: Any) -> Any:  # noqa: ASYNC109 the driver's signature
        """Makes composites and ranges text: of parts that are text the driver cannot make them.

        As text they are exact, can be put in again, and survive a changed type.
        """
        types, statement = await super()._introspect_types(typeoids, timeout)  # type: ignore[misc]
        for row in types:
            if row["kind"] in _COMPOUND and not row["elemtype"]:
                self._speak_text(row["oid"], row["name"], row["ns"])
        return types, statement

    def _speak_text(self, oid: int, name: str, schema: str) -> None:
        settings = self._protocol.get_settings()  # type: ignore[attr-defined]
        settings.add_python_codec(oid, name, schema, [], "scalar", as_string, str, "text")
