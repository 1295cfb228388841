"""A small pool of connections per deployment and role, opened when needed, closed when idle."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import asyncpg
import structlog

from services.app_proxy.database.driver import ByteGuard
from services.app_proxy.database.failures import LOST, ConnectionLostError, LoginRefusedError
from services.app_proxy.database.roles import Address, Role
from services.app_proxy.database.sessions import (
    Connection,
    Pool,
    PoolLimits,
    Session,
    open_pool,
    release,
)
from services.shared.background import background
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId


class Addresses(Protocol):
    """provisioner."""

    async def address(self, key: str, role: Role) -> Address:
        """Returns where the database of the key's own deployment is, its server running."""
        ...


@dataclass(slots=True, eq=False)
class _Entry:
    # Of the passwords, as whoever first asked for the pool knew it.
    generation: int
    # Held while the pool, or the one after it, is made, so that each is made once.
    making: asyncio.Lock = field(default_factory=asyncio.Lock)
    pool: "Pool | None" = None
    users: int = 0
    used_at: float = 0.0

    def end(self) -> None:
        """Closes every connection of it at once."""
        if self.pool is not None:
            self.pool.terminate()


_Owner = tuple[DeploymentId, Role]


@dataclass(frozen=True, slots=True)
class _Held:
    """A connection that was taken from its pool."""

    entry: _Entry
    pool: Pool
    session: Session


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
        # Nobody begins to use these any more; each ends with its last user.
        self._retired: set[_Entry] = set()

    @asynccontextmanager
    async def connection(
        self, deployment_id: DeploymentId, role: Role, key: str, generation: int = 0
    ) -> AsyncIterator[Session]:
        """Yields a fresh session; nothing of the connection's last use is left in it.

        Whoever knows of a later `generation` of the passwords than the pool has gets a new pool;
        the sessions of the old one come to their end. While provisioner is away the old one is
        used, for its passwords overlap with the new ones. A login that is refused is asked for
        anew, once.

        Raises:
            ConnectionLostError: the server could not be reached, or is not the deployment's any
                more; the pool is dropped, so that trying again asks where it is now.
            UnavailableError: provisioner is away, or every connection stayed in use.
        """
        owner = (deployment_id, role)
        try:
            held = await self._held(owner, key, generation)
        except LoginRefusedError:
            held = await self._held(owner, key, generation)
        try:
            with self._losing(owner, held.entry):
                yield held.session
        finally:
            try:
                await release(held.pool, held.session, role)
            finally:
                self._leave(held.entry)

    async def _held(self, owner: _Owner, key: str, generation: int) -> _Held:
        entry = await self._present(owner, key, generation)
        entry.users += 1
        try:
            with self._losing(owner, entry):
                pool = await self._pool(entry, owner[1], key)
                connection = await self._acquire(pool)
        except BaseException:
            self._leave(entry)
            raise
        guard: ByteGuard = connection.guard  # type: ignore[attr-defined]  # passed on by the proxy
        return _Held(entry, pool, Session(connection, guard))

    @contextmanager
    def _losing(self, owner: _Owner, entry: _Entry) -> Iterator[None]:
        """Retires the pool whose server is lost inside the block."""
        try:
            yield
        except ConnectionLostError as error:
            structlog.get_logger().info("database lost", why=type(error.__cause__).__name__)
            # Unless someone else has replaced it already.
            if self._entries.get(owner) is entry:
                self._retire(owner)
            raise

    def _retire(self, owner: _Owner) -> None:
        """Lets nobody begin to use the pool: the next one asks anew where the database is.

        Who uses it goes on: nothing in flight is cut.
        """
        entry = self._entries.pop(owner)
        self._retired.add(entry)
        self._end_unused(entry)

    def _leave(self, entry: _Entry) -> None:
        entry.users -= 1
        entry.used_at = time.monotonic()
        self._end_unused(entry)

    def _end_unused(self, entry: _Entry) -> None:
        if entry in self._retired and not entry.users:
            self._retired.discard(entry)
            entry.end()

    @property
    def open_count(self) -> int:
        """How many pools there are."""
        return len(self._entries)

    async def keep_closing_idle(self) -> None:
        """Closes, for ever, the pools that nobody has used for a while."""
        while True:
            await asyncio.sleep(self._limits.idle_seconds / 4)
            oldest = time.monotonic() - self._limits.idle_seconds
            for owner, entry in list(self._entries.items()):
                if entry.users == 0 and entry.used_at < oldest:
                    self._retire(owner)

    def close(self) -> None:
        """Closes every connection at once."""
        for entry in (*self._entries.values(), *self._retired):
            entry.end()
        self._entries.clear()
        self._retired.clear()

    async def _present(self, owner: _Owner, key: str, generation: int) -> _Entry:
        """Returns what is to be used now, of `generation` unless nobody can say how that gets in.

        One caller asks; the others go on meanwhile with what there is.
        """
        before = self._entries.get(owner)
        if before is None or before.pool is None or before.generation >= generation:
            return self._entry(owner, generation)
        if before.making.locked():
            return before
        async with before.making:
            after = _Entry(generation)
            try:
                await self._pool(after, owner[1], key)
            except UnavailableError:
                return before
            if self._entries.get(owner) is not before:
                # It was closed meanwhile, and perhaps replaced.
                after.end()
                return self._entry(owner, generation)
            self._retire(owner)
            self._entries[owner] = after
            return after

    def _entry(self, owner: _Owner, generation: int) -> _Entry:
        entry = self._entries.get(owner)
        if entry is not None and entry.generation < generation:
            self._retire(owner)
            entry = None
        if entry is None:
            self._make_room()
            entry = self._entries[owner] = _Entry(generation)
        self._entries.move_to_end(owner)
        return entry

    def _make_room(self) -> None:
        if len(self._entries) < self._limits.most:
            return
        unused = (owner for owner, entry in self._entries.items() if entry.users == 0)
        oldest = next(unused, None)
        if oldest is None:
            raise UnavailableError("every database connection of this replica is in use")
        self._retire(oldest)

    async def _pool(self, entry: _Entry, role: Role, key: str) -> Pool:
        async with entry.making:
            if entry.pool is None:
                address = await self._addresses.address(key, role)
                entry.pool = await open_pool(address, role, self._limits)
            return entry.pool

    async def _acquire(self, pool: Pool) -> Connection:
        try:
            return await pool.acquire(timeout=self._limits.wait_seconds)
        except TimeoutError as error:
            if pool.get_idle_size() or pool.get_size() < self._limits.size:
                raise ConnectionLostError(sent=False) from error
            raise UnavailableError("every connection of this database is in use") from error
        except asyncpg.InvalidAuthorizationSpecificationError as error:
            raise LoginRefusedError(sent=False) from error
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
