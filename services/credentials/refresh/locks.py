"""One refresh at a time of a connection: a lock of our own here, Postgres's across replicas."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from weakref import WeakValueDictionary

import asyncpg

from services.credentials.refusals import busy
from services.shared.clock import steady_seconds
from services.shared.ids import ConnectionId
from services.shared.postgres import Connection, Database, postgres_errors

# No more refreshes are let in than there are sessions: who waits for one meets a sick database.
_POOL_SECONDS = 3.0
# A host that is gone without a word holds its locks no longer than the server takes to notice.
_LOCK = """
    SELECT set_config('lock_timeout', $1, false), set_config('tcp_keepalives_idle', '10', false),
           set_config('tcp_keepalives_interval', '5', false),
           set_config('tcp_keepalives_count', '3', false)
"""


class HeldLock:
    """A lock that is held as long as its session lives."""

    def __init__(self, session: Connection) -> None:
        self._session = session

    @property
    def lost(self) -> bool:
        """Whether the session is known to have ended, so that others may hold the lock."""
        try:
            return self._session.is_closed()
        except asyncpg.InterfaceError:
            # The pool has taken back what is of no use any more.
            return True


class RefreshLocks:
    """Session-level advisory locks, on a pool that is used for nothing else.

    They have no time-out of their own: however slow the holder is, it holds the lock, and when it
    dies, its session ends and the lock is free. With sessions shared between locks and statements,
    many holders could wait for the very sessions that other holders keep.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._here: WeakValueDictionary[ConnectionId, asyncio.Lock] = WeakValueDictionary()

    def held_here(self, connection: ConnectionId) -> bool:
        """Whether this process holds, or awaits, the connection's lock."""
        lock = self._here.get(connection)
        return lock is not None and lock.locked()

    @asynccontextmanager
    async def hold(self, connection: ConnectionId, patience: timedelta) -> AsyncIterator[HeldLock]:
        """Holds the connection's lock.

        Raises:
            UnavailableError: someone else holds it for longer than `patience`, or the database is
                away.
        """
        until = steady_seconds() + patience.total_seconds()
        here = self._here.setdefault(connection, asyncio.Lock())
        try:
            async with asyncio.timeout(patience.total_seconds()):
                await here.acquire()
        except TimeoutError as error:
            raise busy() from error
        try:
            async with self._session() as session:
                await _lock(session, connection, until)
                yield HeldLock(session)
        finally:
            here.release()

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Connection]:
        with postgres_errors():
            session = await self._database.pool.acquire(timeout=_POOL_SECONDS)
        try:
            yield session
        finally:
            # Also unlocks, as the pool resets what comes back to it.
            with postgres_errors():
                await self._database.pool.release(session)


async def _lock(session: Connection, connection: ConnectionId, until: float) -> None:
    left = max(0.05, until - steady_seconds())
    with postgres_errors():
        # Undone, as the lock itself is, when the pool gets the session back.
        await session.execute(_LOCK, f"{int(left * 1000)}ms")
        try:
            await session.execute(
                "SELECT pg_advisory_lock($1)", _number(connection), timeout=left + 1
            )
        except asyncpg.LockNotAvailableError as error:
            raise busy() from error


def _number(connection: ConnectionId) -> int:
    digest = hashlib.sha256(f"connection {connection}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
