"""A small pool of connections per deployment and role, opened when needed, closed when idle."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

import asyncpg
import asyncpg.pool
import structlog

from services.app_proxy.database.codecs import install_codecs
from services.app_proxy.database.driver import ByteGuard, GuardedConnection
from services.app_proxy.database.failures import LOST, ConnectionLostError, refused
from services.app_proxy.database.roles import Address, Role
from services.shared.background import background
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    _Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]

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


class Addresses(Protocol):
    """provisioner."""

    async def address(self, key: str, role: Role) -> Address:
        """Returns where the database of the key's own deployment is, its server running."""
        ...


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


@dataclass(slots=True)
class _Entry:
    # Held while the pool is made, so that it is made once.
    making: asyncio.Lock = field(default_factory=asyncio.Lock)
    pool: "_Pool | None" = None
    users: int = 0
    used_at: float = 0.0


_Owner = tuple[DeploymentId, Role]


@dataclass(frozen=True, slots=True)
class Session:
    """A connection while it is used, and the guard before it."""

    connection: "Connection"
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


class Pools:
    """The pools of all deployments, each reachable by its deployment's id alone.

    The id comes from the principal of the presented key, never from a request; where the database
    is, and its password, is asked with that very key. So one deployment's key cannot reach
    another's pool, nor open one.
    """

    def __init__(self, addresses: Addresses, limits: PoolLimits) -> None:
        self._addresses = addresses
        self._limits = limits
        self._entries: OrderedDict[_Owner, _Entry] = OrderedDict()

    @asynccontextmanager
    async def connection(
        self, deployment_id: DeploymentId, role: Role, key: str
    ) -> AsyncIterator[Session]:
        """Yields a fresh session; nothing of the connection's last use is left in it.

        Raises:
            ConnectionLostError: the server could not be reached, or is not the deployment's any
                more; the pool is dropped, so that trying again asks where it is now.
            UnavailableError: provisioner is away, or every connection stayed in use.
        """
        owner = (deployment_id, role)
        entry = self._entry(owner)
        entry.users += 1
        try:
            async with self._session(entry, role, key) as session:
                yield session
        except ConnectionLostError as error:
            structlog.get_logger().info("database lost", why=type(error.__cause__).__name__)
            # Unless someone else has replaced it already.
            if self._entries.get(owner) is entry:
                self.drop(deployment_id, role)
            raise
        finally:
            entry.users -= 1
            entry.used_at = time.monotonic()

    @asynccontextmanager
    async def _session(self, entry: _Entry, role: Role, key: str) -> AsyncIterator[Session]:
        pool = await self._pool(entry, role, key)
        connection = await self._acquire(pool)
        guard: ByteGuard = connection.guard  # type: ignore[attr-defined]  # passed on by the proxy
        try:
            yield Session(connection, guard)
        finally:
            guard.allow(None)
            await _release(pool, connection)

    def drop(self, deployment_id: DeploymentId, role: Role) -> None:
        """Forgets the pool, so that the next use asks anew where the database is."""
        entry = self._entries.pop((deployment_id, role), None)
        if entry is not None and entry.pool is not None:
            entry.pool.terminate()

    @property
    def open_count(self) -> int:
        """How many pools there are."""
        return len(self._entries)

    async def keep_closing_idle(self) -> None:
        """Closes, for ever, the pools that nobody has used for a while."""
        while True:
            await asyncio.sleep(self._limits.idle_seconds / 4)
            oldest = time.monotonic() - self._limits.idle_seconds
            for (deployment_id, role), entry in list(self._entries.items()):
                if entry.users == 0 and entry.used_at < oldest:
                    self.drop(deployment_id, role)

    def close(self) -> None:
        """Closes every connection at once."""
        for deployment_id, role in list(self._entries):
            self.drop(deployment_id, role)

    def _entry(self, owner: _Owner) -> _Entry:
        entry = self._entries.get(owner)
        if entry is None:
            self._make_room()
            entry = self._entries[owner] = _Entry()
        self._entries.move_to_end(owner)
        return entry

    def _make_room(self) -> None:
        if len(self._entries) < self._limits.most:
            return
        unused = (owner for owner, entry in self._entries.items() if entry.users == 0)
        oldest = next(unused, None)
        if oldest is None:
            raise UnavailableError("every database connection of this replica is in use")
        self.drop(*oldest)

    async def _pool(self, entry: _Entry, role: Role, key: str) -> "_Pool":
        async with entry.making:
            if entry.pool is None:
                address = await self._addresses.address(key, role)
                entry.pool = await self._open(address, role)
            return entry.pool

    async def _open(self, address: Address, role: Role) -> "_Pool":
        read_only = {"default_transaction_read_only": "on"} if role is Role.READER else {}
        return await asyncpg.create_pool(
            host=address.host,
            port=address.port,
            database=address.database,
            user=address.user,
            password=address.password,
            min_size=0,
            max_size=self._limits.size,
            max_inactive_connection_lifetime=self._limits.idle_seconds,
            timeout=_CONNECT_SECONDS,
            # DISCARD ALL drops prepared statements: none may be remembered beyond a use.
            statement_cache_size=0,
            connection_class=GuardedConnection,
            init=_prepare,
            reset=_reset,
            server_settings=_SESSION | read_only,
        )

    async def _acquire(self, pool: "_Pool") -> "Connection":
        try:
            return await pool.acquire(timeout=self._limits.wait_seconds)
        except TimeoutError as error:
            if pool.get_idle_size() or pool.get_size() < self._limits.size:
                raise ConnectionLostError(sent=False) from error
            raise UnavailableError("every connection of this database is in use") from error
        except (*LOST, asyncpg.InterfaceError) as error:
            raise ConnectionLostError(sent=False) from error


@asynccontextmanager
async def open_pools(addresses: Addresses, limits: PoolLimits) -> AsyncIterator[Pools]:
    """Yields the pools; they are all closed at the end."""
    pools = Pools(addresses, limits)
    try:
        async with background(pools.keep_closing_idle()):
            yield pools
    finally:
        pools.close()


async def _prepare(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    await install_codecs(connection)
    assert isinstance(connection, GuardedConnection)  # noqa: S101 the pool makes no other
    connection.prepare_session()


async def _reset(connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Leaves nothing of a use: settings, roles, temporary tables, locks, prepared statements."""
    await connection.execute("DISCARD ALL")


async def _release(pool: "_Pool", connection: "Connection") -> None:
    try:
        await pool.release(connection, timeout=_RESET_SECONDS)
    except (*LOST, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        # The driver has ended the connection already; the next use gets a new one.
        structlog.get_logger().info("connection not kept", why=type(error).__name__)
