"""Tenants that are being deleted, or were; one function a query."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from services.provisioner.domain import OperationState, Step
from services.shared.ids import OperationId, TenantId
from services.shared.postgres import Connection

_TOMBSTONE = (
    "tenant_id, operation_id, state, step, retries, message, requested_at, ended_at,"
    " key_expires_at, evidence, certificate"
)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """How far the deletion of a tenant is; the one row that stays of it."""

    tenant_id: TenantId
    operation_id: OperationId
    state: OperationState
    step: Step
    retries: int
    message: str
    request_time: datetime
    end_time: datetime | None
    # When the key that it acts with ends.
    key_expire_time: datetime | None
    # What the certificate will say, as far as it is known.
    evidence: Mapping[str, Any]
    certificate: str | None


@dataclass(frozen=True, slots=True)
class Due:
    """A deletion under way, the key it acts with, and how long to wait before it goes on."""

    tombstone: Tombstone
    sealed_key: bytes
    wait: timedelta
    now: datetime


async def lock_tenant(connection: Connection, tenant: TenantId) -> None:
    """Returns when nothing can come to be of the tenant but by this transaction.

    See `refuse_deleted` in the migrations: who was faster has committed by then. Take the
    deployments' rows before, as whoever works on one takes them first.
    """
    await connection.execute(
        "SELECT pg_advisory_xact_lock(hashtextextended('tombstone ' || $1, 0))", tenant
    )


async def find(connection: Connection, tenant: TenantId) -> tuple[Tombstone, bytes] | None:
    """Returns the tenant's tombstone, and the SHA-256 of the token that opens it."""
    row = await connection.fetchrow(
        f"SELECT {_TOMBSTONE}, token_digest FROM tombstones WHERE tenant_id = $1",  # noqa: S608 columns
        tenant,
    )
    return None if row is None else (_tombstone(row), bytes(row["token_digest"]))


async def of_token(connection: Connection, digest: bytes) -> Tombstone | None:
    """Returns the tombstone that the token of this SHA-256 opens."""
    row = await connection.fetchrow(
        f"SELECT {_TOMBSTONE} FROM tombstones WHERE token_digest = $1",  # noqa: S608 columns
        digest,
    )
    return None if row is None else _tombstone(row)


async def insert(
    connection: Connection,
    tenant: TenantId,
    operation_id: OperationId,
    digest: bytes,
    sealed_key: bytes,
    key_expires_at: datetime | None,
) -> None:
    """Writes that the tenant is deleted from now on."""
    await connection.execute(
        "INSERT INTO tombstones (tenant_id, operation_id, token_digest, state, step, sealed_key,"
        " key_expires_at) VALUES ($1, $2, $3, 'running', $4, $5, $6)",
        tenant,
        operation_id,
        digest,
        Step.CUTTING_OFF,
        sealed_key,
        key_expires_at,
    )


async def due(connection: Connection, tenant: TenantId) -> Due | None:
    """Returns the tenant's deletion when it is under way."""
    row = await connection.fetchrow(
        f"SELECT {_TOMBSTONE}, sealed_key, now() AS now,"  # noqa: S608 columns
        " greatest(next_try_at - now(), interval '0') AS wait"
        " FROM tombstones WHERE tenant_id = $1 AND state = 'running'",
        tenant,
    )
    if row is None:
        return None
    return Due(_tombstone(row), bytes(row["sealed_key"]), row["wait"], row["now"])


async def set_step(connection: Connection, tenant: TenantId, step: Step) -> None:
    """Writes what is being done."""
    await connection.execute(
        "UPDATE tombstones SET step = $2 WHERE tenant_id = $1 AND state = 'running'", tenant, step
    )


async def keep(connection: Connection, tenant: TenantId, evidence: Mapping[str, Any]) -> None:
    """Adds what was found out; what `services` has said stays beside what others say."""
    await connection.execute(
        "UPDATE tombstones SET evidence = evidence || ($2::jsonb - 'services')"
        " || jsonb_build_object('services',"
        "  coalesce(evidence->'services', '{}') || coalesce($2::jsonb->'services', '{}'))"
        " WHERE tenant_id = $1 AND state = 'running'",
        tenant,
        json.dumps(dict(evidence)),
    )


async def set_key(
    connection: Connection, tenant: TenantId, sealed_key: bytes, expires_at: datetime | None
) -> None:
    """Replaces the key that the deletion acts with."""
    await connection.execute(
        "UPDATE tombstones SET sealed_key = $2, key_expires_at = $3"
        " WHERE tenant_id = $1 AND state = 'running'",
        tenant,
        sealed_key,
        expires_at,
    )


async def set_retry(
    connection: Connection, tenant: TenantId, message: str, delay: timedelta
) -> None:
    """Counts a failed try, and writes when the next one is due."""
    await connection.execute(
        "UPDATE tombstones SET retries = retries + 1, message = $2, next_try_at = now() + $3"
        " WHERE tenant_id = $1 AND state = 'running'",
        tenant,
        message,
        delay,
    )


async def set_next_try(connection: Connection, tenant: TenantId, delay: timedelta) -> None:
    """Writes when the deletion is looked at again; nothing has failed."""
    await connection.execute(
        "UPDATE tombstones SET next_try_at = now() + $2, message = ''"
        " WHERE tenant_id = $1 AND state = 'running'",
        tenant,
        delay,
    )


async def end(connection: Connection, tenant: TenantId, certificate: str) -> None:
    """Ends the deletion, with its certificate; the key and what was found out go."""
    await connection.execute(
        "UPDATE tombstones SET state = 'succeeded', certificate = $2, ended_at = now(),"
        " message = '', sealed_key = NULL, key_expires_at = NULL, evidence = '{}'"
        " WHERE tenant_id = $1 AND state = 'running'",
        tenant,
        certificate,
    )


async def neglected(connection: Connection) -> Sequence[TenantId]:
    """Returns every tenant whose deletion is due and that no entry of the queue waits for."""
    rows = await connection.fetch(
        "SELECT tenant_id FROM tombstones"
        " WHERE state = 'running' AND next_try_at <= now() AND NOT EXISTS ("
        "  SELECT FROM pgqueuer WHERE status = 'queued'"
        "  AND payload = convert_to(tombstones.tenant_id, 'UTF8'))"
    )
    return [row["tenant_id"] for row in rows]


def _tombstone(row: asyncpg.Record) -> Tombstone:
    return Tombstone(
        tenant_id=row["tenant_id"],
        operation_id=row["operation_id"],
        state=OperationState(row["state"]),
        step=Step(row["step"]),
        retries=row["retries"],
        message=row["message"],
        request_time=row["requested_at"],
        end_time=row["ended_at"],
        key_expire_time=row["key_expires_at"],
        evidence=json.loads(row["evidence"]),
        certificate=row["certificate"],
    )
