"""One statement in a transaction of its own, with bound parameters and within caps."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import asyncpg.cursor
import asyncpg.prepared_stmt
import structlog

from services.app_proxy.database.driver import ByteGuard
from services.app_proxy.database.failures import (
    ConnectionLostError,
    Failure,
    StatementError,
    refused,
    statement_errors,
)
from services.app_proxy.database.pools import Pools
from services.app_proxy.database.results import Caps, Column, Result, RowsInCaps, unique_names
from services.app_proxy.database.roles import Role
from services.app_proxy.database.sessions import Session
from services.app_proxy.database.spans import statement_span
from services.app_proxy.database.statements import checked
from services.app_proxy.database.turns import Turns
from services.shared.ids import DeploymentId

if TYPE_CHECKING:
    from services.app_proxy.database.sessions import Connection

    _Statement = asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]
    _Cursor = asyncpg.cursor.Cursor[asyncpg.Record]

# Postgres stops a statement itself; this is how much later we stop waiting for that.
_GRACE_SECONDS = 1.0
_BEGIN_SECONDS = 5.0
_RESTART_SECONDS = 1.0
# What Postgres may send for a schema, which is read by statements of our own.
_SCHEMA_WIRE_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose database: the deployment of a resolved key, and that key."""

    deployment_id: DeploymentId
    key: str = field(repr=False)
    # Of the database's passwords, as the route by which the request came has it.
    generation: int = 0


class Executor:
    """Runs statements on deployments' databases."""

    def __init__(self, pools: Pools, caps: Caps) -> None:
        self._pools = pools
        self._caps = caps
        self._turns = Turns()

    async def query(self, owner: Owner, sql: str, params: Sequence[Any]) -> Result:
        """Returns what `sql` reads. It runs as `reader` in a read-only transaction.

        A server that was lost is looked for once more.

        Raises:
            StatementError: the statement failed or was refused.
        """
        checked(sql)
        try:
            return await self._once(owner, Role.READER, sql, params)
        except ConnectionLostError:
            return await self._last(owner, Role.READER, sql, params)

    async def execute(self, owner: Owner, sql: str, params: Sequence[Any]) -> Result:
        """Returns what `sql` did, committed. It runs as `writer`.

        It is sent once: what was sent when the connection broke may have been done.

        Raises:
            StatementError: the statement failed or was refused; nothing of it is left, unless the
                error says that this is not known.
        """
        checked(sql)
        try:
            return await self._once(owner, Role.WRITER, sql, params)
        except ConnectionLostError as error:
            if error.sent:
                raise _away(sent=True) from error
            return await self._last(owner, Role.WRITER, sql, params)

    async def _last(self, owner: Owner, role: Role, sql: str, params: Sequence[Any]) -> Result:
        try:
            return await self._once(owner, role, sql, params)
        except ConnectionLostError as error:
            raise _away(sent=error.sent and role is Role.WRITER) from error

    async def _once(self, owner: Owner, role: Role, sql: str, params: Sequence[Any]) -> Result:
        async with self._transaction(owner, role) as session:
            backend = session.connection.get_server_pid()
            try:
                async with asyncio.timeout(self._caps.seconds + _GRACE_SECONDS):
                    return await self._run(session, owner, role, sql, params)
            except TimeoutError as error:
                session.connection.terminate()
                await self._end(owner, role, backend)
                raise refused("57014", "the statement took too long and was ended") from error

    async def _end(self, owner: Owner, role: Role, backend: int) -> None:
        """Ends a backend whose statement caught both its timeout and its cancellation."""
        structlog.get_logger().warning("statement would not end", deployment_id=owner.deployment_id)
        async with self._session(owner, role) as session:
            with session.watched(sent=False), statement_errors():
                # As the login itself, which is what may end its own sessions.
                await session.connection.execute(
                    f"SET ROLE NONE; SELECT pg_catalog.pg_terminate_backend({backend})",
                    timeout=_BEGIN_SECONDS,
                )

    def _session(self, owner: Owner, role: Role) -> AbstractAsyncContextManager[Session]:
        return self._pools.connection(owner.deployment_id, role, owner.key, owner.generation)

    @asynccontextmanager
    async def reading(self, owner: Owner) -> AsyncIterator["Connection"]:
        """Yields a connection in a read-only transaction, for statements of our own.

        A server that was lost before is looked for once more.

        Raises:
            StatementError: one of them failed, or the server was lost.
        """
        try:
            async with AsyncExitStack() as stack:
                session = await self._found(stack, owner)
                await stack.enter_async_context(
                    asyncio.timeout(self._caps.seconds + _GRACE_SECONDS)
                )
                session.guard.allow(_SCHEMA_WIRE_BYTES)
                with session.watched(sent=False), statement_errors():
                    yield session.connection
        except (ConnectionLostError, TimeoutError) as error:
            raise _away(sent=False) from error

    async def _found(self, stack: AsyncExitStack, owner: Owner) -> Session:
        try:
            return await stack.enter_async_context(self._transaction(owner, Role.READER))
        except ConnectionLostError:
            return await stack.enter_async_context(self._transaction(owner, Role.READER))

    @asynccontextmanager
    async def _transaction(self, owner: Owner, role: Role) -> AsyncIterator[Session]:
        mode = "READ ONLY" if role is Role.READER else "READ WRITE"
        millis = int(self._caps.seconds * 1_000)
        async with self._session(owner, role) as session:
            with session.watched(sent=False), statement_errors():
                # The SELECT takes the snapshot, after which no statement can make the
                # transaction writable again.
                await session.connection.execute(
                    f"BEGIN {mode}; SET LOCAL statement_timeout = {millis}; SELECT 1",
                    timeout=_BEGIN_SECONDS,
                )
            session.guard.allow(self._caps.wire)
            yield session

    async def _run(
        self, session: Session, owner: Owner, role: Role, sql: str, params: Sequence[Any]
    ) -> Result:
        writes = role is Role.WRITER
        with statement_span(sql):
            with session.watched(sent=False), statement_errors():
                statement = await session.connection.prepare(sql)
            _check_count(statement, params)
            with session.watched(sent=True), statement_errors():
                result = await self._read(session, owner, statement, params, drain=writes)
        if writes:
            with session.watched(sent=True), statement_errors():
                # Deferred constraints speak only now.
                await session.connection.execute("COMMIT")
        return result

    async def _read(
        self,
        session: Session,
        owner: Owner,
        statement: "_Statement",
        params: Sequence[Any],
        *,
        drain: bool,
    ) -> Result:
        attributes = statement.get_attributes()
        if not attributes:
            await statement.fetch(*params)
            tag = statement.get_statusmsg()
            return Result(tag=tag, affected=_affected(tag))
        names = unique_names(attribute.name for attribute in attributes)
        collected = RowsInCaps(self._caps, names)
        arrays = any(attribute.type.kind == "array" for attribute in attributes)
        session.guard.allowance.allow(self._caps.work_seconds)
        session.guard.allow_rows(self._caps.row_bytes, self._caps.values if arrays else None)
        cursor = await statement.cursor(*params)
        count, whole = await self._collect(session, owner, cursor, collected)
        if not whole and drain:
            count, whole = count + await _ran_on(session, cursor), True
        columns = [
            Column(name, attribute.type.name)
            for name, attribute in zip(names, attributes, strict=True)
        ]
        return Result(columns, collected.rows, collected.cut, affected=count if whole else None)

    async def _collect(
        self, session: Session, owner: Owner, cursor: "_Cursor", collected: RowsInCaps
    ) -> tuple[int, bool]:
        """Fills `collected`; returns how many rows were read, and whether these were all."""
        turn, count = self._turns.of(owner.deployment_id), 0
        while True:
            asked = collected.next_batch()
            records = await cursor.fetch(asked)
            async with turn:
                await _take(session.guard, records, collected)
            read = len(records) + session.guard.rows_left_out
            count += read
            if read < asked:
                return count, True
            if collected.cut is not None:
                return count, False


async def _take(guard: ByteGuard, records: Sequence[Any], collected: RowsInCaps) -> None:
    """Adds `records`, then rests for as long as they took: half of the time is the others'."""
    allowance = guard.allowance
    for record in records:
        if allowance.out_of_time:
            break
        with allowance.charged():
            collected.add(record)
    if allowance.out_of_time:
        collected.stop("more would take too long to prepare")
    elif guard.rows_left_out:
        caps = collected.caps
        collected.stop(f"one more would exceed {caps.size} bytes or {caps.values} values")
    await asyncio.sleep(allowance.owed_seconds())


async def _ran_on(session: Session, cursor: "_Cursor") -> int:
    """Does what is left of a change whose rows are cut; returns how many rows those were.

    Postgres runs it without sending the rows.
    """
    portal = cursor._portal_name  # type: ignore[attr-defined]  # noqa: SLF001 the driver has no public way
    return _affected(await session.connection.execute(f'MOVE FORWARD ALL IN "{portal}"')) or 0


def _check_count(statement: "_Statement", params: Sequence[Any]) -> None:
    wanted = len(statement.get_parameters())
    if wanted != len(params):
        raise refused("08P01", f"the statement has {wanted} parameters, {len(params)} were given")


def _affected(tag: str | None) -> int | None:
    last = (tag or "").rpartition(" ")[2]
    return int(last) if last.isdigit() else None


def _away(*, sent: bool) -> StatementError:
    if sent:
        return StatementError(
            Failure(
                "08006",
                "the connection to the database broke while the statement ran",
                hint="look whether it took effect before sending it again",
                retry_after=_RESTART_SECONDS,
            )
        )
    return StatementError(
        Failure(
            "57P03",
            "the database is restarting",
            hint=f"try again in {_RESTART_SECONDS:.0f} s",
            retry_after=_RESTART_SECONDS,
        )
    )
