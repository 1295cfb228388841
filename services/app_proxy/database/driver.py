"""The driver, bounded: a huge row must not fill our memory (P-38)."""

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg

from services.app_proxy.database.codecs import as_string

if TYPE_CHECKING:
    _Connection = asyncpg.Connection[asyncpg.Record]
else:
    _Connection = asyncpg.Connection

_RECORD_OID = 2249
# `pg_type.typtype` of composites, ranges and multiranges.
_COMPOUND = (b"c", b"r", b"m")


class ByteGuard(asyncio.Protocol):
    """Stands before the driver's protocol and cuts the connection once the budget is used up.

    The driver collects a whole row before it hands it out, and Postgres has no limit on a row's
    size short of a gigabyte; so the limit is here, where the bytes arrive.
    """

    def __init__(self, driver: Any, transport: Any) -> None:
        self._driver = driver
        self._transport = transport
        self._left: int | None = None
        self.overrun = False

    def allow(self, size: int | None) -> None:
        """Sets the budget in bytes; None: no limit."""
        self._left = size

    def data_received(self, data: bytes) -> None:
        """Passes `data` on, unless it is more than is allowed."""
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                self.overrun = True
                self._transport.abort()
                return
        self._driver.data_received(data)

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
