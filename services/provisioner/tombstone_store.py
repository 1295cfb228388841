"""Tenants that are being deleted, or were; one function a query."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from services.provisioner.domain import OperationState, Step
from services.provisioner.operation_store import SealedKey
from services.shared.ids import OperationId, TenantId
from services.shared.postgres import Connection

_TOMBSTONE = (
    "tenant_id, operation_id, state, step, retries, message, requested_at, ended_at,"
    " evidence, certificate"
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
    # What the certificate will say, as far as it is known.
    evidence: Mapping[str, Any]
    certificate: str | None


@dataclass(frozen=True, slots=True)
class Due:
    """A deletion under way, the key it acts with, and how long to wait before it goes on."""

    tombstone: Tombstone
    sealed_key: bytes = field(repr=False)
    wait: timedelta
    # The key is to be replaced.
    stale: bool
    now: datetime


async def lock_tenant(connection: Connection, tenant: TenantId) -> None:
    """Returns when nothing can come to be of the tenant but by this transaction.

    See `refuse_deleted` in the migrations: who was faster has committed by then. It is taken before
    any row, as `secret_store.hold_off_deletion` is, so that neither waits for the other for ever.
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
    key: SealedKey,
) -> None:
    """Writes that the tenant is deleted from now on."""
    await connection.execute(
        "INSERT INTO tombstones (tenant_id, operation_id, token_digest, state, step, sealed_key,"
        " key_renew_at) VALUES ($1, $2, $3, 'running', $4, $5, $6)",
        tenant,
        operation_id,
        digest,
        Step.CUTTING_OFF,
        key.sealed,
        key.renew_time,
    )


async def due(connection: Connection, tenant: TenantId) -> Due | None:
    """Returns the tenant's deletion when it is under way."""
    row = await connection.fetchrow(
        f"SELECT {_TOMBSTONE}, sealed_key, now() AS now, key_renew_at < now() AS stale,"  # noqa: S608 columns
        " greatest(next_try_at - now(), interval '0') AS wait"
        " FROM tombstones WHERE tenant_id = $1 AND state = 'running'",
        tenant,
    )
    if row is None:
        return None
    return Due(
        _tombstone(row),
        bytes(row["sealed_key"]),
        row["wait"],
        stale=row["stale"] is True,
        now=row["now"],
    )


async def set_step(connection: Connection, tenant: TenantId, step: Step) -> None:
    """Writes what is being done."""
    await connection.execute(
        "UPDATE tombstones SET step = $2, retries = 0, message = ''"
        " WHERE tenant_id = $1 AND state = 'running' AND step <> $2",
        tenant,
        step,
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


async def keep_once(
    connection: Connection, tenant: TenantId, service: str, receipt: Mapping[str, Any]
) -> None:
    """Adds what a service has erased, unless it is there already."""
    await connection.execute(
        "UPDATE tombstones SET evidence = evidence || jsonb_build_object('services',"
        "  jsonb_build_object($2::text, $3::jsonb) || coalesce(evidence->'services', '{}'))"
        " WHERE tenant_id = $1 AND state = 'running'",
        tenant,
        service,
        json.dumps(dict(receipt)),
    )


async def set_key(connection: Connection, tenant: TenantId, key: SealedKey) -> None:
    """Replaces the key that the deletion acts with."""
    await connection.execute(
        "UPDATE tombstones SET sealed_key = $2, key_renew_at = $3"
        " WHERE tenant_id = $1 AND state = 'running'",
        tenant,
        key.sealed,
        key.renew_time,
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
        " message = '', sealed_key = NULL, key_renew_at = NULL, evidence = '{}'"
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
        evidence=json.loads(row["evidence"]),
        certificate=row["certificate"],
    )
