"""Sessions of a deployment's database: how they begin, what breaks them, and how they are reset."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import asyncpg
import asyncpg.pool
import structlog

from services.app_proxy.database.codecs import install_codecs
from services.app_proxy.database.driver import ByteGuard, GuardedConnection
from services.app_proxy.database.failures import LOST, ConnectionLostError, refused
from services.app_proxy.database.roles import Address, Role
from services.shared.server_trust import trusting

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

_CONNECT_SECONDS = 3.0
_RESET_SECONDS = 2.0
_TOO_LARGE = "the statement returned more at once than can be passed on"
_TOO_LARGE_HINT = "select fewer or shorter columns, or use LIMIT"
_SESSION = {
    "application_name": "bulkhead",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "bytea_output": "hex",
}


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """How many connections there may be, and for how long."""

    # Connections of one deployment and role.
    size: int
    # Pools of this process.
    most: int
    # Seconds without use until a pool is closed.
    idle_seconds: float
    # Seconds that a statement waits for a connection of its pool.
    wait_seconds: float


@dataclass(frozen=True, slots=True)
class Session:
    """A connection while it is used, and the guard before it."""

    connection: Connection
    guard: ByteGuard

    @property
    def ended(self) -> bool:
        """Whether the connection is closed, by whichever side."""
        try:
            return self.connection.is_closed()
        except asyncpg.InterfaceError:
            # The pool has taken it back, as it does with one that is closed.
            return True

    @contextmanager
    def watched(self, *, sent: bool) -> Iterator[None]:
        """Turns a connection that breaks inside the block into ConnectionLostError.

        `sent` says whether a statement may have been executed by then.

        Raises:
            StatementError: it was us who cut it, since the statement returned too much.
        """
        try:
            yield
        except TimeoutError:
            raise
        except (*LOST, asyncpg.InterfaceError) as error:
            if self.guard.overrun:
                raise refused("54000", _TOO_LARGE, _TOO_LARGE_HINT) from error
            if isinstance(error, asyncpg.InterfaceError) and not self.ended:
                raise refused("0A000", str(error)) from error
            raise ConnectionLostError(sent=sent) from error


async def open_pool(address: Address, role: Role, limits: PoolLimits) -> Pool:
    """Returns a pool of sessions of the role, as the login of the address."""
    read_only = {"default_transaction_read_only": "on"} if role is Role.READER else {}
    return await asyncpg.create_pool(
        host=address.host,
        port=address.port,
        database=address.database,
        user=address.user,
        password=address.password,
        ssl=trusting(address.authority) if address.authority else False,
        min_size=0,
        max_size=limits.size,
        max_inactive_connection_lifetime=limits.idle_seconds,
        timeout=_CONNECT_SECONDS,
        # A reset drops prepared statements: none may be remembered beyond a use.
        statement_cache_size=0,
        connection_class=GuardedConnection,
        init=_prepare,
        # It comes clean: `release` is the only way back.
        reset=_nothing,
        # Whichever login it is: passwords change with logins, what they may do does not.
        server_settings=_SESSION | read_only | {"role": role.value},
    )


async def _prepare(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await install_codecs(connection)
    assert isinstance(connection, GuardedConnection)  # noqa: S101 the pool makes no other
    connection.prepare_session()


async def _nothing(_: "asyncpg.Connection[asyncpg.Record]") -> None:
    pass


def _reset(role: Role) -> str:
    """Returns what leaves nothing of a use: settings, temporary tables, locks, statements.

    It is what DISCARD ALL does, statement by statement. That one leaves the session as its login,
    or not, by the version of Postgres, and is possible in no transaction: to act as the role again
    would be a round trip of its own.
    """
    return (
        "CLOSE ALL; SET SESSION AUTHORIZATION DEFAULT; RESET ALL; DEALLOCATE ALL; UNLISTEN *;"
        " SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD PLANS; DISCARD TEMP;"
        f" DISCARD SEQUENCES; SET ROLE {role.value}"
    )


_RESETS = {role: _reset(role) for role in Role}


async def release(pool: Pool, session: Session, role: Role) -> None:
    """Gives the session back to its pool, clean and in no transaction; or ends it."""
    session.guard.allow(None)
    try:
        if not session.ended:
            await _clean(session.connection, role)
        await pool.release(session.connection)
    except (*LOST, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # Ended already; the next use gets a new one.
        structlog.get_logger().info("connection not kept", why=type(error).__name__)


async def _clean(connection: Connection, role: Role) -> None:
    end = "ROLLBACK; " if connection.is_in_transaction() else ""
    try:
        await connection.execute(end + _RESETS[role], timeout=_RESET_SECONDS)
    except BaseException:
        connection.terminate()
        raise
