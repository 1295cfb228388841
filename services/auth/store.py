"""The tables of auth, one function a query."""

from collections.abc import Sequence
from datetime import datetime
from typing import TypeVar

import asyncpg

from services.auth.domain import Key, NewKey, Tenant
from services.auth.revocation_store import announce_revocation
from services.shared.errors import NotFoundError
from services.shared.ids import DeploymentId, KeyId, TenantId
from services.shared.postgres import Connection
from services.shared.principal import KeyKind, Plan, Principal

_Value = TypeVar("_Value")

_KEY_COLUMNS = "key_id, kind, deployment_id, name, scopes, hint, created_at, revoked_at"
_INSERT_KEY = """
    INSERT INTO keys (key_id, kind, tenant_id, deployment_id, digest, hint, name, scopes,
                      bound_peer, issued_by, request_id, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
    ON CONFLICT (tenant_id, request_id) DO NOTHING
    RETURNING key_id
"""


async def insert_tenant(
    connection: Connection, tenant_id: TenantId, name: str, plan: Plan, by: KeyId, request_id: str
) -> bool:
    """Returns whether the tenant was written; not when this request was made before."""
    inserted = await connection.fetchval(
        "INSERT INTO tenants (tenant_id, name, plan, created_by, request_id)"
        " VALUES ($1, $2, $3, $4, $5)"
        " ON CONFLICT (created_by, request_id) DO NOTHING RETURNING tenant_id",
        tenant_id,
        name,
        plan,
        by,
        request_id,
    )
    return inserted is not None


async def tenant_of_request(connection: Connection, by: KeyId, request_id: str) -> Tenant:
    """Returns the tenant that a request created before."""
    row = await connection.fetchrow(
        "SELECT tenant_id, name, plan, created_at FROM tenants"
        " WHERE created_by = $1 AND request_id = $2",
        by,
        request_id,
    )
    return _tenant(_found(row, "tenant"))


async def get_tenant(connection: Connection, tenant_id: TenantId) -> Tenant:
    """Returns the tenant.

    Raises:
        NotFoundError: unknown.
    """
    row = await connection.fetchrow(
        "SELECT tenant_id, name, plan, created_at FROM tenants WHERE tenant_id = $1", tenant_id
    )
    return _tenant(_found(row, "tenant"))


async def insert_key(connection: Connection, tenant_id: TenantId | None, key: NewKey) -> bool:
    """Returns whether the key was written; not when this request was made before.

    Raises:
        NotFoundError: the deployment is not the tenant's.
    """
    try:
        inserted = await connection.fetchval(
            _INSERT_KEY,
            key.key_id,
            key.kind,
            tenant_id,
            key.deployment_id,
            key.digest,
            key.hint,
            key.name,
            sorted(key.scopes),
            key.bound_peer,
            key.issued_by,
            key.request_id,
            key.expires_at,
        )
    except asyncpg.ForeignKeyViolationError as error:
        raise NotFoundError("deployment") from error
    return inserted is not None


async def reissue_key(connection: Connection, tenant_id: TenantId, key: NewKey) -> KeyId | None:
    """Gives the key of the same, repeated request a fresh secret, if it was never used.

    Returns its id; None when it was used or revoked, or was asked for with other content.
    """
    key_id = await connection.fetchval(
        "UPDATE keys SET digest = $3, hint = $4"
        " WHERE tenant_id = $1 AND request_id = $2 AND kind = $5"
        " AND deployment_id IS NOT DISTINCT FROM $6 AND scopes = $7 AND name = $8"
        " AND first_used_at IS NULL AND revoked_at IS NULL RETURNING key_id",
        tenant_id,
        key.request_id,
        key.digest,
        key.hint,
        key.kind,
        key.deployment_id,
        sorted(key.scopes),
        key.name,
    )
    return KeyId(key_id) if key_id is not None else None


async def put_operator_key(connection: Connection, key: NewKey) -> None:
    """Makes the key the operator's, and every earlier one of the same origin invalid."""
    await connection.execute(
        "UPDATE keys SET digest = $2, hint = $3, scopes = $4, revoked_at = NULL"
        " WHERE tenant_id IS NULL AND request_id = $1 AND digest <> $2",
        key.request_id,
        key.digest,
        key.hint,
        sorted(key.scopes),
    )
    await insert_key(connection, None, key)


async def list_keys(
    connection: Connection,
    tenant_id: TenantId,
    deployment_id: DeploymentId | None,
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Key]:
    """Returns keys, newest first, that come after the position `after`; none of jobs."""
    rows = await connection.fetch(
        f"SELECT {_KEY_COLUMNS} FROM keys WHERE tenant_id = $1 AND kind <> 'job'"  # noqa: S608 a constant
        " AND ($2::text IS NULL OR deployment_id = $2)"
        " AND ($3::timestamptz IS NULL OR (created_at, key_id) < ($3, $4))"
        " ORDER BY created_at DESC, key_id DESC LIMIT $5",
        tenant_id,
        deployment_id,
        after[0] if after else None,
        after[1] if after else None,
        limit,
    )
    return [_key(row) for row in rows]


async def resolve_keys(
    connection: Connection, digests: Sequence[bytes]
) -> tuple[int, list[Principal | None]]:
    """Returns the last revocation and the principal of each digest, of one moment.

    One statement: the number and the keys are of one snapshot, so no revocation is between them.
    """
    rows = await connection.fetch(
        """
        SELECT s.sequence, k.key_id, k.kind, k.tenant_id, k.deployment_id, k.scopes, k.expires_at,
               k.bound_peer, t.plan, k.first_used_at IS NULL AS unused
        FROM revocation_sequence s
        CROSS JOIN unnest($1::bytea[]) WITH ORDINALITY AS asked (digest, position)
        LEFT JOIN keys k ON k.digest = asked.digest AND k.revoked_at IS NULL
             AND (k.expires_at IS NULL OR k.expires_at > now())
        LEFT JOIN tenants t ON t.tenant_id = k.tenant_id
        ORDER BY asked.position
        """,
        list(digests),
    )
    unused = [row["key_id"] for row in rows if row["key_id"] is not None and row["unused"]]
    if unused:
        await connection.execute(
            "UPDATE keys SET first_used_at = now()"
            " WHERE key_id = ANY($1) AND first_used_at IS NULL",
            unused,
        )
    return rows[0]["sequence"], [_principal(row) for row in rows]


async def revoke_key(connection: Connection, tenant_id: TenantId, key_id: KeyId) -> datetime:
    """Revokes one key; returns when it was revoked, which may be before.

    Raises:
        NotFoundError: unknown, or another tenant's.
    """
    row = await connection.fetchrow(
        "SELECT revoked_at FROM keys WHERE tenant_id = $1 AND key_id = $2 AND kind <> 'job'"
        " FOR UPDATE",
        tenant_id,
        key_id,
    )
    before: datetime | None = _found(row, "key")["revoked_at"]
    if before is not None:
        return before
    revoked_at: datetime | None = await connection.fetchval(
        "UPDATE keys SET revoked_at = now() WHERE tenant_id = $1 AND key_id = $2"
        " RETURNING revoked_at",
        tenant_id,
        key_id,
    )
    await announce_revocation(connection, [key_id])
    return _known(revoked_at)


async def register_deployment(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> None:
    """Binds the deployment to the tenant, unless it is bound already.

    Raises:
        NotFoundError: it is another tenant's, or was retired.
    """
    await connection.execute(
        "INSERT INTO deployments (deployment_id, tenant_id) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        deployment_id,
        tenant_id,
    )
    await verify_deployment(connection, tenant_id, deployment_id)


async def verify_deployment(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> None:
    """Returns when the deployment is the tenant's and not retired.

    Raises:
        NotFoundError: otherwise.
    """
    row = await connection.fetchrow(
        "SELECT 1 FROM deployments WHERE tenant_id = $1 AND deployment_id = $2"
        " AND retired_at IS NULL",
        tenant_id,
        deployment_id,
    )
    _found(row, "deployment")


async def retire_deployment(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> int:
    """Revokes all keys of the deployment, for good; returns how many were valid.

    A deployment that was never registered is retired too, so that it never will be. One of another
    tenant stays as it is, and nothing says that it exists.
    """
    await connection.execute(
        "INSERT INTO deployments (deployment_id, tenant_id, retired_at) VALUES ($1, $2, now())"
        " ON CONFLICT DO NOTHING",
        deployment_id,
        tenant_id,
    )
    await connection.execute(
        "UPDATE deployments SET retired_at = now()"
        " WHERE tenant_id = $1 AND deployment_id = $2 AND retired_at IS NULL",
        tenant_id,
        deployment_id,
    )
    rows = await connection.fetch(
        "UPDATE keys SET revoked_at = now()"
        " WHERE tenant_id = $1 AND deployment_id = $2 AND revoked_at IS NULL RETURNING key_id",
        tenant_id,
        deployment_id,
    )
    if rows:
        await announce_revocation(connection, [KeyId(row["key_id"]) for row in rows])
    return len(rows)


async def lock_deployment(
    connection: Connection, tenant_id: TenantId, deployment_id: DeploymentId
) -> None:
    """Holds the deployment until the transaction ends, so that it is not retired meanwhile.

    Raises:
        NotFoundError: another tenant's, unknown or retired.
    """
    row = await connection.fetchrow(
        "SELECT 1 FROM deployments WHERE tenant_id = $1 AND deployment_id = $2"
        " AND retired_at IS NULL FOR UPDATE",
        tenant_id,
        deployment_id,
    )
    _found(row, "deployment")


async def delete_expired_jobs(connection: Connection, tenant_id: TenantId) -> None:
    """Forgets the keys of jobs that ended long ago."""
    await connection.execute(
        "DELETE FROM keys WHERE tenant_id = $1 AND kind = 'job'"
        " AND expires_at < now() - interval '1 day'",
        tenant_id,
    )


def _found(row: "asyncpg.Record | None", kind: str) -> asyncpg.Record:
    if row is None:
        raise NotFoundError(kind)
    return row


def _known(value: _Value | None) -> _Value:
    assert value is not None  # noqa: S101 the statement always returns a row
    return value


def _tenant(row: asyncpg.Record) -> Tenant:
    return Tenant(TenantId(row["tenant_id"]), row["name"], Plan(row["plan"]), row["created_at"])


def _key(row: asyncpg.Record) -> Key:
    return Key(
        key_id=KeyId(row["key_id"]),
        kind=KeyKind(row["kind"]),
        deployment_id=_deployment(row),
        name=row["name"],
        scopes=frozenset(row["scopes"]),
        hint=row["hint"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )


def _principal(row: asyncpg.Record) -> Principal | None:
    if row["key_id"] is None:
        return None
    return Principal(
        key_id=KeyId(row["key_id"]),
        kind=KeyKind(row["kind"]),
        tenant_id=TenantId(row["tenant_id"]) if row["tenant_id"] is not None else None,
        deployment_id=_deployment(row),
        scopes=frozenset(row["scopes"]),
        plan=Plan(row["plan"]) if row["plan"] is not None else Plan.FREE,
        expires_at=row["expires_at"],
        bound_peer=row["bound_peer"],
    )


def _deployment(row: asyncpg.Record) -> DeploymentId | None:
    return DeploymentId(row["deployment_id"]) if row["deployment_id"] is not None else None
