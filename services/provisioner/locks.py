"""One worker at a time on a subject: a lock of our own here, Postgres's across replicas."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from weakref import WeakValueDictionary

import asyncpg

from services.provisioner.domain import not_ready
from services.provisioner.ports import Subject
from services.shared.errors import UnavailableError
from services.shared.ids import TenantId
from services.shared.places import Places
from services.shared.postgres import Connection, Database, postgres_errors

_PLACE_SECONDS = 20.0


class DeploymentLocks:
    """Session-level advisory locks, on a pool that is used for nothing else.

    With connections shared between locks and statements, many holders could wait for the very
    connections that other holders keep.

    Calls hold `for_calls` of them at most, so that the workers find theirs, and one tenant's calls
    half of those (P-38).
    """

    def __init__(self, database: Database, for_calls: int = 8) -> None:
        self._database = database
        self._places = Places(for_calls)
        self._here: WeakValueDictionary[Subject, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def hold(
        self, subject: Subject, patience: timedelta, *, caller: TenantId | None = None
    ) -> AsyncIterator[None]:
        """Holds the subject's lock.

        What is done for a `caller` waits until few enough of its calls hold any.

        Raises:
            UnavailableError: someone else holds it for longer than `patience`; or the caller holds
                too many for long.
        """
        async with AsyncExitStack() as stack:
            if caller is not None:
                await self._place(stack, caller)
            await stack.enter_async_context(self._hold(subject, patience))
            yield

    async def _place(self, stack: AsyncExitStack, caller: TenantId) -> None:
        try:
            async with asyncio.timeout(_PLACE_SECONDS):
                await stack.enter_async_context(self._places.take(caller))
        except TimeoutError as error:
            raise UnavailableError("too many calls of this tenant are under way") from error

    @asynccontextmanager
    async def _hold(self, subject: Subject, patience: timedelta) -> AsyncIterator[None]:
        here = self._here.setdefault(subject, asyncio.Lock())
        until = asyncio.get_running_loop().time() + patience.total_seconds()
        try:
            async with asyncio.timeout_at(until):
                await here.acquire()
        except TimeoutError as error:
            raise not_ready() from error
        try:
            async with self._hold_everywhere(subject, until):
                yield
        finally:
            here.release()

    @asynccontextmanager
    async def _hold_everywhere(self, subject: Subject, until: float) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            with postgres_errors():
                acquiring = self._database.pool.acquire(timeout=_left(until))
                connection = await stack.enter_async_context(acquiring)
                await _lock(connection, subject, until)
            # What fails from here on is not the lock's.
            async with _while_held(connection):
                yield


@asynccontextmanager
async def _while_held(connection: Connection) -> AsyncIterator[None]:
    """Ends the block when the connection is lost, and the lock with it: others may have it now."""
    held = asyncio.timeout(None)

    def lose(_: object) -> None:
        held.reschedule(asyncio.get_running_loop().time())

    try:
        async with held:
            connection.add_termination_listener(lose)
            try:
                yield
            finally:
                # A connection that was lost has left the pool already.
                with suppress(asyncpg.InterfaceError):
                    connection.remove_termination_listener(lose)
    except TimeoutError as error:
        if not held.expired():
            raise
        raise not_ready() from error


async def _lock(connection: Connection, subject: Subject, until: float) -> None:
    milliseconds = int(_left(until) * 1000)
    # Undone, as the lock itself is, when the pool gets the connection back.
    await connection.execute("SELECT set_config('lock_timeout', $1, false)", f"{milliseconds}ms")
    try:
        await connection.execute(
            "SELECT pg_advisory_lock($1)", _number(subject), timeout=_left(until) + 1
        )
    except asyncpg.LockNotAvailableError as error:
        raise not_ready() from error


def _left(until: float) -> float:
    return max(0.05, until - asyncio.get_running_loop().time())


def _number(subject: Subject) -> int:
    digest = hashlib.sha256(f"deployment {subject}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)
