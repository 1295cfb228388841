"""A service's own database: its pool, its two kinds of transaction, its migrations."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import asyncpg.pool

from services.shared import migrations
from services.shared.background import background
from services.shared.errors import NotFoundError, UnavailableError
from services.shared.ids import TenantId
from services.shared.migrations import NO_RELEASE
from services.shared.places import Shares
from services.shared.recording import Recording
from services.shared.schema import migrate, prepare
from services.shared.settings import PostgresSettings, secret_text
from services.shared.store_recording import Statements, observe_pool
from services.shared.store_tls import postgres_tls

Connection: TypeAlias = (
    "asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
)

_CONNECT_TIMEOUT_SECONDS = 3.0
_ACQUIRE_TIMEOUT_SECONDS = 3.0
# Whoever waits so long waits for others of the same tenant.
_SHARE_TIMEOUT_SECONDS = 10.0
_COMMAND_TIMEOUT_SECONDS = 10.0
_RECONNECT_SECONDS = 0.2

# Our own: raised by triggers where nothing may come to be of a tenant any more.
_ERASED = "BH410"
_AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    # We were silent in the middle of a transaction for so long that the server gave up on us.
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InterfaceError,
    # What asyncpg raises when the connection is lost in the middle of its own protocol.
    asyncpg.InternalClientError,
)


@contextmanager
def postgres_errors() -> Iterator[None]:
    """Turns a Postgres that is away inside the block into UnavailableError.

    A tenant that is erased turns into NotFoundError.
    """
    try:
        yield
    except _AWAY as error:
        raise UnavailableError("the service's database is away") from error
    except asyncpg.PostgresError as error:
        if error.sqlstate == _ERASED:
            raise NotFoundError("tenant") from error
        raise


class Signal:
    """Tells that a notification arrived on a channel since the last wait."""

    def __init__(self) -> None:
        self._arrived = asyncio.Event()

    def set(self) -> None:
        """Wakes who waits, now or next."""
        self._arrived.set()

    async def wait(self, seconds: float) -> bool:
        """Waits for a notification, at most `seconds`; returns whether one came."""
        try:
            async with asyncio.timeout(seconds):
                await self._arrived.wait()
        except TimeoutError:
            return False
        self._arrived.clear()
        return True


class Database:
    """A service's database. Every statement runs in one of two kinds of transaction.

    `tenant` acts as the role `<service>_tenant`, which row-level security confines to one tenant's
    rows, so that a forgotten WHERE returns nothing (P-36). `service` acts as `<service>_service`,
    which sees across: it is for named code that has a reason.

    One tenant has half of the pool's connections at most: its statements may wait for each other's
    locks, and those of others never for that (P-38).
    """

    def __init__(
        self, pool: "asyncpg.Pool[asyncpg.Record]", service: str, settings: PostgresSettings
    ) -> None:
        self.pool = pool
        self._service = service
        self._settings = settings
        self._shares = Shares(max(1, settings.postgres_pool_size // 2))
        self._waiting = 0

    @asynccontextmanager
    async def tenant(self, tenant: TenantId) -> AsyncIterator[Connection]:
        """Yields a connection inside a transaction that sees `tenant`'s rows alone."""
        async with self._share(tenant), self._transaction() as connection:
            await connection.execute(
                "SELECT set_config('role', $1, true), set_config('bulkhead.tenant_id', $2, true)",
                f"{self._service}_tenant",
                tenant,
            )
            yield connection

    @asynccontextmanager
    async def _share(self, tenant: TenantId) -> AsyncIterator[None]:
        share = self._shares.of(tenant)
        try:
            async with asyncio.timeout(_SHARE_TIMEOUT_SECONDS):
                await share.acquire()
        except TimeoutError as error:
            raise UnavailableError("too many calls of this tenant are under way") from error
        try:
            yield
        finally:
            share.release()

    @asynccontextmanager
    async def service(self) -> AsyncIterator[Connection]:
        """Yields a connection inside a transaction that sees every tenant's rows."""
        async with self._transaction() as connection:
            await connection.execute(
                "SELECT set_config('role', $1, true)", f"{self._service}_service"
            )
            yield connection

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        with postgres_errors():
            async with self._acquired() as connection, connection.transaction():
                yield connection

    @property
    def waiting(self) -> int:
        """How many wait for a connection of the pool."""
        return self._waiting

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[Connection]:
        self._waiting += 1
        try:
            connection = await self.pool.acquire(timeout=_ACQUIRE_TIMEOUT_SECONDS)
        except asyncpg.PostgresError as error:
            # Whatever keeps us from logging in: to our callers the database is away.
            raise UnavailableError("the service's database is away") from error
        finally:
            self._waiting -= 1
        try:
            yield connection
        finally:
            await self.pool.release(connection)

    async def check(self) -> None:
        """Returns when the database answers.

        Raises:
            UnavailableError: it does not.
        """
        with postgres_errors():
            await self.pool.fetchval("SELECT 1", timeout=_CONNECT_TIMEOUT_SECONDS)

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncIterator[Signal]:
        """Yields a signal that is set by each NOTIFY on `channel`, and after each reconnect.

        The listening connection is its own and comes back by itself; what was sent while it was
        away is not known, which is why a reconnect sets the signal too.
        """
        signal = Signal()
        async with background(self._keep_listening(channel, signal)):
            yield signal

    async def _keep_listening(self, channel: str, signal: Signal) -> None:
        while True:
            try:
                connection = await connect(self._settings)
            except (*_AWAY, asyncpg.PostgresError):
                # Whatever keeps us from logging in, it may be over the next time.
                await asyncio.sleep(_RECONNECT_SECONDS)
                continue
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _, lost=lost: lost.set())
            try:
                with suppress(*_AWAY):
                    await connection.add_listener(channel, lambda *_: signal.set())
                    signal.set()
                    await lost.wait()
            finally:
                connection.terminate()


async def connect(settings: PostgresSettings) -> "asyncpg.Connection[asyncpg.Record]":
    """Returns a connection of its own, outside any pool."""
    connection: asyncpg.Connection[asyncpg.Record] = await _connecting(settings)(
        host=settings.postgres_host,
        port=settings.postgres_port,
        database=settings.postgres_database,
        user=settings.postgres_user,
        password=secret_text(settings.postgres_password_file),
        timeout=_CONNECT_TIMEOUT_SECONDS,
        command_timeout=_COMMAND_TIMEOUT_SECONDS,
        server_settings={"application_name": NO_RELEASE},
    )
    return connection


def _connecting(settings: PostgresSettings) -> Callable[..., Any]:
    """Returns what makes a connection, by TLS or in plaintext and by nothing else."""
    tls = postgres_tls(settings)

    async def connected(*arguments: Any, **options: Any) -> Any:
        try:
            return await asyncpg.connect(*arguments, ssl=tls.get() if tls else False, **options)
        except ssl.SSLError as error:
            if tls is not None:
                tls.refused(error)
            raise

    return connected


@asynccontextmanager
async def open_database(
    settings: PostgresSettings, service: str, folder: Path, *, pool_name: str = ""
) -> AsyncIterator[Database]:
    """Yields the service's database, the migrations in `folder` applied.

    `pool_name` is what its figures are called, where a process has more than one; `service` is the
    first one's.

    Raises:
        UnavailableError: it cannot be reached.
        MigrationError: the migrations do not fit what is there; see `prepare`.
    """
    recording = Recording.of(settings)
    name = migrations.session_name(migrations.read_migrations(folder))
    pool = asyncpg.create_pool(
        host=settings.postgres_host,
        port=settings.postgres_port,
        database=settings.postgres_database,
        user=settings.postgres_user,
        password=lambda: secret_text(settings.postgres_password_file) or "",
        min_size=1,
        max_size=settings.postgres_pool_size,
        timeout=_CONNECT_TIMEOUT_SECONDS,
        command_timeout=_COMMAND_TIMEOUT_SECONDS,
        init=Statements(recording, service).follow if settings.is_measured else None,
        server_settings={"application_name": name},
        connect=_connecting(settings),
    )
    try:
        with postgres_errors():
            await pool
            async with pool.acquire() as connection:
                await prepare(connection, folder, settings)
        database = Database(pool, service, settings)
        _observe(recording, pool_name or service, database)
        yield database
    finally:
        await pool.close()


def _observe(recording: Recording, name: str, database: Database) -> None:
    pool = database.pool
    observe_pool(
        recording,
        name,
        size=pool.get_size,
        idle=pool.get_idle_size,
        waiting=lambda: database.waiting,
        most=pool.get_max_size(),
    )


async def migrate_alone(settings: PostgresSettings, folder: Path) -> None:
    """Applies the migrations in `folder` by a session of its own.

    Raises:
        UnavailableError: the database cannot be reached.
        MigrationError: they cannot be applied.
    """
    with postgres_errors():
        connection = await connect(settings)
        try:
            await migrate(connection, folder)
        finally:
            await connection.close()
