"""One statement in a transaction of its own, with bound parameters and within caps."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import asyncpg
import asyncpg.prepared_stmt
import structlog

from services.app_proxy.database.codecs import json_safe
from services.app_proxy.database.failures import (
    ConnectionLostError,
    Failure,
    StatementError,
    refused,
    statement_errors,
)
from services.app_proxy.database.pools import Pools, Session
from services.app_proxy.database.results import Caps, Column, Result, RowsInCaps, unique_names
from services.app_proxy.database.roles import Role
from services.app_proxy.database.spans import statement_span
from services.app_proxy.database.statements import checked
from services.shared.ids import DeploymentId

if TYPE_CHECKING:
    from services.app_proxy.database.pools import Connection

    _Statement = asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]

# Postgres stops a statement itself; this is how much later we stop waiting for that.
_GRACE_SECONDS = 1.0
_BEGIN_SECONDS = 5.0
_RESTART_SECONDS = 1.0
_DRAIN_ROWS = 500


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose database: the deployment of a resolved key, and that key."""

    deployment_id: DeploymentId
    key: str = field(repr=False)


class Executor:
    """Runs statements on deployments' databases."""

    def __init__(self, pools: Pools, caps: Caps) -> None:
        self._pools = pools
        self._caps = caps

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
                    return await self._run(session, role, sql, params)
            except TimeoutError as error:
                session.connection.terminate()
                await self._end(owner, role, backend)
                raise refused("57014", "the statement took too long and was ended") from error

    async def _end(self, owner: Owner, role: Role, backend: int) -> None:
        """Ends a backend whose statement caught both its timeout and its cancellation."""
        structlog.get_logger().warning("statement would not end", deployment_id=owner.deployment_id)
        async with self._pools.connection(owner.deployment_id, role, owner.key) as session:
            with session.watched(sent=False), statement_errors():
                await session.connection.execute(
                    f"SELECT pg_catalog.pg_terminate_backend({backend})", timeout=_BEGIN_SECONDS
                )

    @asynccontextmanager
    async def reading(self, owner: Owner) -> AsyncIterator["Connection"]:
        """Yields a connection in a read-only transaction, for statements of our own.

        Raises:
            StatementError: one of them failed, or the server was lost.
        """
        try:
            async with (
                self._transaction(owner, Role.READER) as session,
                asyncio.timeout(self._caps.seconds + _GRACE_SECONDS),
            ):
                with session.watched(sent=False), statement_errors():
                    yield session.connection
        except (ConnectionLostError, TimeoutError) as error:
            raise _away(sent=False) from error

    @asynccontextmanager
    async def _transaction(self, owner: Owner, role: Role) -> AsyncIterator[Session]:
        mode = "READ ONLY" if role is Role.READER else "READ WRITE"
        millis = int(self._caps.seconds * 1_000)
        async with self._pools.connection(owner.deployment_id, role, owner.key) as session:
            with session.watched(sent=False), statement_errors():
                # The SELECT takes the snapshot, after which no statement can make the
                # transaction writable again.
                await session.connection.execute(
                    f"BEGIN {mode}; SET LOCAL statement_timeout = {millis}; SELECT 1",
                    timeout=_BEGIN_SECONDS,
                )
            session.guard.allow(self._caps.wire)
            try:
                yield session
            except StatementError:
                await _roll_back(session)
                raise
            await _roll_back(session)

    async def _run(self, session: Session, role: Role, sql: str, params: Sequence[Any]) -> Result:
        writes = role is Role.WRITER
        with statement_span(sql):
            with session.watched(sent=False), statement_errors():
                statement = await session.connection.prepare(sql)
            _check_count(statement, params)
            with session.watched(sent=True), statement_errors():
                result = await self._read(session, statement, params, drain=writes)
        if writes:
            with session.watched(sent=True), statement_errors():
                # Deferred constraints speak only now.
                await session.connection.execute("COMMIT")
        return result

    async def _read(
        self, session: Session, statement: "_Statement", params: Sequence[Any], *, drain: bool
    ) -> Result:
        attributes = statement.get_attributes()
        if not attributes:
            await statement.fetch(*params)
            tag = statement.get_statusmsg()
            return Result(tag=tag, affected=_affected(tag))
        names = unique_names(attribute.name for attribute in attributes)
        collected = RowsInCaps(self._caps, names)
        read = await self._collect(session, statement, params, collected, drain=drain)
        columns = [
            Column(name, attribute.type.name)
            for name, attribute in zip(names, attributes, strict=True)
        ]
        return Result(columns, collected.rows, collected.cut, affected=read)

    async def _collect(
        self,
        session: Session,
        statement: "_Statement",
        params: Sequence[Any],
        collected: RowsInCaps,
        *,
        drain: bool,
    ) -> int | None:
        """Fills `collected`; returns how many rows there were, None when not all were read."""
        cursor = await statement.cursor(*params)
        count = 0
        while True:
            asked = collected.next_batch() if collected.cut is None else _DRAIN_ROWS
            records = await cursor.fetch(asked)
            count += len(records)
            for record in records:
                if collected.cut is None:
                    collected.add(json_safe(value) for value in record)
            if len(records) < asked:
                return count
            if collected.cut is not None and not drain:
                return None
            if collected.cut is not None:
                # What is left of a change is done, not handed out.
                session.guard.allow(self._caps.wire)


async def _roll_back(session: Session) -> None:
    if not session.ended and session.connection.is_in_transaction():
        with session.watched(sent=True):
            await session.connection.execute("ROLLBACK", timeout=_BEGIN_SECONDS)


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
