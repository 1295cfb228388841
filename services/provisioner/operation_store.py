"""The operations on deployments, one function a query."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, cast

import asyncpg

from services.provisioner.domain import (
    Deployment,
    Operation,
    OperationKind,
    OperationState,
    Step,
)
from services.provisioner.store import some
from services.shared.ids import DeploymentId, OperationId, TenantId
from services.shared.postgres import Connection

OPERATIONS_CHANNEL = "operations"

_OPERATION = (
    "operation_id, tenant_id, deployment_id, kind, state, step, retries, message, created_at,"
    " ended_at, parameters"
)


@dataclass(frozen=True, slots=True)
class SealedKey:
    """The key that an operation acts with, and when a new one is to be asked for."""

    sealed: bytes = field(repr=False)
    renew_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """An operation that is to be done, its sealed key, and how long to wait first."""

    operation: Operation
    sealed_key: bytes = field(repr=False)
    wait: timedelta
    # The key is to be replaced.
    stale: bool


async def insert(
    connection: Connection,
    deployment: Deployment,
    operation_id: OperationId,
    kind: OperationKind,
    step: Step,
    key: SealedKey,
    *,
    request_id: str | None = None,
    parameters: Mapping[str, Any] = MappingProxyType({}),
) -> Operation:
    """Writes an operation that is yet to be done."""
    row = await connection.fetchrow(
        "INSERT INTO operations (operation_id, tenant_id, deployment_id, kind, state, step,"  # noqa: S608 columns
        " sealed_key, key_renew_at, request_id, parameters)"
        f" VALUES ($1, $2, $3, $4, 'running', $5, $6, $7, $8, $9) RETURNING {_OPERATION}",
        operation_id,
        deployment.tenant_id,
        deployment.deployment_id,
        kind,
        step,
        key.sealed,
        key.renew_time,
        request_id,
        json.dumps(dict(parameters)),
    )
    return _operation(some(row))


async def revive(connection: Connection, operation_id: OperationId, key: SealedKey) -> Operation:
    """Begins a failed operation anew, where it was."""
    row = await connection.fetchrow(
        "UPDATE operations SET state = 'running', ended_at = NULL, retries = 0, message = '',"  # noqa: S608 columns
        " next_try_at = now(), sealed_key = $2, key_renew_at = $3"
        f" WHERE operation_id = $1 RETURNING {_OPERATION}",
        operation_id,
        key.sealed,
        key.renew_time,
    )
    return _operation(some(row))


async def set_key(connection: Connection, operation_id: OperationId, key: SealedKey) -> None:
    """Gives a running operation a new key to act with, and lets it be tried at once."""
    await connection.execute(
        "UPDATE operations SET sealed_key = $2, key_renew_at = $3, next_try_at = now()"
        " WHERE operation_id = $1 AND state = 'running'",
        operation_id,
        key.sealed,
        key.renew_time,
    )


async def get(connection: Connection, operation_id: OperationId) -> Operation | None:
    """Returns the operation."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION} FROM operations WHERE operation_id = $1",  # noqa: S608 columns
        operation_id,
    )
    return None if row is None else _operation(row)


async def of_kind(
    connection: Connection, deployment_id: DeploymentId, kind: OperationKind
) -> Operation | None:
    """Returns the deployment's last operation of that kind."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION} FROM operations WHERE deployment_id = $1 AND kind = $2"  # noqa: S608 columns
        " ORDER BY created_at DESC, operation_id DESC LIMIT 1",
        deployment_id,
        kind,
    )
    return None if row is None else _operation(row)


async def of_request(
    connection: Connection, tenant: TenantId, kind: OperationKind, request_id: str
) -> Operation | None:
    """Returns what an earlier call with the same request_id began."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION} FROM operations"  # noqa: S608 columns
        " WHERE tenant_id = $1 AND kind = $2 AND request_id = $3",
        tenant,
        kind,
        request_id,
    )
    return None if row is None else _operation(row)


async def running(
    connection: Connection, deployment_id: DeploymentId, *, waiting: bool = False
) -> Operation | None:
    """Returns what is being done with the deployment.

    A rotation that merely waits for the passwords of before to end counts only if asked for.
    """
    row = await connection.fetchrow(
        f"SELECT {_OPERATION} FROM operations WHERE deployment_id = $1 AND state = 'running'"  # noqa: S608 columns
        " AND ($2 OR NOT (kind = 'rotate' AND step IN ('overlapping', 'ending')))"
        " ORDER BY created_at DESC LIMIT 1",
        deployment_id,
        waiting,
    )
    return None if row is None else _operation(row)


async def last_of(
    connection: Connection, deployment_ids: Iterable[DeploymentId]
) -> dict[DeploymentId, Operation]:
    """Returns what is being done with each of the deployments, or was done last."""
    rows = await connection.fetch(
        f"SELECT DISTINCT ON (deployment_id) {_OPERATION} FROM operations"  # noqa: S608 columns
        " WHERE deployment_id = ANY($1)"
        " ORDER BY deployment_id, created_at DESC, operation_id DESC",
        list(deployment_ids),
    )
    return {row["deployment_id"]: _operation(row) for row in rows}


async def due(connection: Connection, deployment_id: DeploymentId) -> Due | None:
    """Returns what is to be done first for the deployment, and how long to wait before."""
    row = await connection.fetchrow(
        f"SELECT {_OPERATION}, sealed_key, key_renew_at < now() AS stale,"  # noqa: S608 columns
        " greatest(next_try_at - now(), interval '0') AS wait"
        " FROM operations WHERE deployment_id = $1 AND state = 'running'"
        " ORDER BY wait, created_at LIMIT 1",
        deployment_id,
    )
    if row is None:
        return None
    return Due(_operation(row), bytes(row["sealed_key"]), row["wait"], stale=row["stale"] is True)


async def set_step(connection: Connection, operation_id: OperationId, step: Step) -> None:
    """Writes what is being done."""
    await connection.execute(
        "UPDATE operations SET step = $2 WHERE operation_id = $1 AND state = 'running'",
        operation_id,
        step,
    )


async def set_retry(
    connection: Connection, operation_id: OperationId, message: str, delay: timedelta
) -> None:
    """Counts a failed try, and writes when the next one is due."""
    await connection.execute(
        "UPDATE operations SET retries = retries + 1, message = $2, next_try_at = now() + $3"
        " WHERE operation_id = $1 AND state = 'running'",
        operation_id,
        message,
        delay,
    )


async def set_next_try(connection: Connection, operation_id: OperationId, delay: timedelta) -> None:
    """Writes when the operation is looked at again; nothing has failed."""
    await connection.execute(
        "UPDATE operations SET next_try_at = now() + $2"
        " WHERE operation_id = $1 AND state = 'running'",
        operation_id,
        delay,
    )


async def end(
    connection: Connection, operation_id: OperationId, state: OperationState, message: str
) -> bool:
    """Ends the operation and erases its key; returns False if it had ended before."""
    ended = await connection.fetchval(
        "UPDATE operations SET state = $2, message = $3, ended_at = now(), sealed_key = NULL"
        " WHERE operation_id = $1 AND state = 'running' RETURNING true",
        operation_id,
        state,
        message,
    )
    return ended is True


async def supersede(
    connection: Connection,
    deployment_id: DeploymentId,
    kinds: Iterable[OperationKind],
    message: str,
) -> None:
    """Ends the deployment's running operations of the kinds, for something else is wanted now."""
    await connection.execute(
        "UPDATE operations SET state = 'failed', message = $3, ended_at = now(), sealed_key = NULL"
        " WHERE deployment_id = $1 AND kind = ANY($2) AND state = 'running'",
        deployment_id,
        list(kinds),
        message,
    )


async def begin_overlap(
    connection: Connection, operation_id: OperationId, overlap: timedelta
) -> timedelta:
    """Returns how much is left of the rotation's overlap, which begins with the first call."""
    return cast(
        "timedelta",
        await connection.fetchval(
            "UPDATE operations SET parameters = jsonb_build_object('overlap_end', now() + $2)"
            "  || parameters WHERE operation_id = $1 RETURNING"
            " greatest((parameters->>'overlap_end')::timestamptz - now(), interval '0')",
            operation_id,
            overlap,
        ),
    )


async def neglected_deployments(connection: Connection) -> Sequence[DeploymentId]:
    """Returns every deployment with work that is due and that no entry of the queue waits for.

    An entry that was picked may have been picked by a process that is gone, so it does not count.
    """
    rows = await connection.fetch(
        "SELECT DISTINCT deployment_id FROM operations"
        " WHERE state = 'running' AND next_try_at <= now() AND NOT EXISTS ("
        "  SELECT FROM pgqueuer WHERE status = 'queued'"
        "  AND payload = convert_to(operations.deployment_id, 'UTF8'))"
    )
    return [row["deployment_id"] for row in rows]


def _operation(row: asyncpg.Record) -> Operation:
    return Operation(
        operation_id=row["operation_id"],
        tenant_id=row["tenant_id"],
        deployment_id=row["deployment_id"],
        kind=OperationKind(row["kind"]),
        state=OperationState(row["state"]),
        step=Step(row["step"]),
        retries=row["retries"],
        message=row["message"],
        create_time=row["created_at"],
        end_time=row["ended_at"],
        parameters=json.loads(row["parameters"]),
    )
