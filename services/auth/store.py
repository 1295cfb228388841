"""The tables of auth, one function a query."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from services.auth.domain import Key, NewKey, Owned, OwnedKind, Tenant, id_of
from services.shared.errors import NotFoundError, UnauthenticatedError
from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Connection
from services.shared.principal import KeyKind, Plan

KEY_COLUMNS = (
    "key_id, kind, deployment_id, connection_id, name, scopes, hint, created_at, revoked_at,"
    " expires_at, last_used_at, successor_key_id, support_reason, announced_sequence"
)
_INSERT_KEY = """
    INSERT INTO keys (key_id, kind, tenant_id, deployment_id, digest, hint, name, scopes,
                      bound_peer, issued_by, request_id, expires_at, predecessor_key_id,
                      grace_period, pepper_id, connection_id)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
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
    return _tenant(found(row, "tenant"))


async def get_tenant(connection: Connection, tenant_id: TenantId) -> Tenant:
    """Returns the tenant.

    Raises:
        NotFoundError: unknown.
    """
    row = await connection.fetchrow(
        "SELECT tenant_id, name, plan, created_at FROM tenants WHERE tenant_id = $1", tenant_id
    )
    return _tenant(found(row, "tenant"))


async def hold_tenant(connection: Connection, tenant_id: TenantId) -> None:
    """Returns when the tenant is not closed, nor will be, nor its plan change, until the commit.

    Whatever makes a key of it does this first.

    Raises:
        NotFoundError: it is closed.
    """
    row = await connection.fetchrow(
        "SELECT 1 FROM tenants WHERE tenant_id = $1 AND closed_at IS NULL FOR SHARE", tenant_id
    )
    found(row, "tenant")


async def hold_tenant_of_job(connection: Connection, tenant_id: TenantId, key_id: KeyId) -> bool:
    """Returns whether the tenant is closed; neither it nor its job's key changes until the commit.

    Who closes the tenant ends that key or not, before or after: it gives no successor when ended.

    Raises:
        NotFoundError: the tenant is erased.
        UnauthenticatedError: the key was revoked, or has expired.
    """
    row = await connection.fetchrow(
        "SELECT closed_at IS NOT NULL AS closed FROM tenants WHERE tenant_id = $1 FOR SHARE",
        tenant_id,
    )
    closed: bool = found(row, "tenant")["closed"]
    # A statement of its own: it sees what was committed while the one before waited.
    valid = await connection.fetchval(
        "SELECT revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now()) FROM keys"
        " WHERE tenant_id = $1 AND key_id = $2",
        tenant_id,
        key_id,
    )
    if not valid:
        raise UnauthenticatedError
    return closed


async def lock_tenant(connection: Connection, tenant_id: TenantId) -> int | None:
    """Returns the revocation that closed the tenant, if it is; nothing is made of it meanwhile."""
    row = await connection.fetchrow(
        "SELECT closed_sequence FROM tenants WHERE tenant_id = $1 FOR NO KEY UPDATE", tenant_id
    )
    sequence: int | None = found(row, "tenant")["closed_sequence"]
    return sequence


async def change_plan(connection: Connection, tenant_id: TenantId, plan: Plan) -> list[KeyId]:
    """Moves the locked tenant to the plan; returns its keys, whose meaning changes with it."""
    await connection.execute("UPDATE tenants SET plan = $2 WHERE tenant_id = $1", tenant_id, plan)
    rows = await connection.fetch(
        "SELECT key_id FROM keys WHERE tenant_id = $1 AND revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > now())",
        tenant_id,
    )
    return [KeyId(row["key_id"]) for row in rows]


async def close_tenant(connection: Connection, tenant_id: TenantId, sequence: int | None) -> None:
    """Closes the locked tenant, whose keys the revocation `sequence` ended."""
    await connection.execute(
        "UPDATE tenants SET closed_at = coalesce(closed_at, now()),"
        " closed_sequence = coalesce($2, closed_sequence) WHERE tenant_id = $1",
        tenant_id,
        sequence,
    )


async def insert_key(connection: Connection, tenant_id: TenantId | None, key: NewKey) -> bool:
    """Returns whether the key was written; not when this request was made before.

    Raises:
        NotFoundError: the deployment or connection is not the tenant's.
    """
    try:
        inserted = await connection.fetchval(
            _INSERT_KEY,
            key.key_id,
            key.kind,
            tenant_id,
            id_of(OwnedKind.DEPLOYMENT, key.owned),
            key.digest,
            key.hint,
            key.name,
            sorted(key.scopes),
            key.bound_peer,
            key.issued_by,
            key.request_id,
            key.expires_at,
            key.predecessor,
            key.grace,
            key.pepper_id,
            id_of(OwnedKind.CONNECTION, key.owned),
        )
    except asyncpg.ForeignKeyViolationError as error:
        raise NotFoundError(key.owned.kind if key.owned is not None else "tenant") from error
    return inserted is not None


async def reissue_key(connection: Connection, tenant_id: TenantId, key: NewKey) -> KeyId | None:
    """Gives the key of the same, repeated request a fresh secret, if it was never used.

    Returns its id; None when it was used or revoked, or was asked for with other content.
    """
    key_id = await connection.fetchval(
        "UPDATE keys SET digest = $3, hint = $4, pepper_id = $10"
        " WHERE tenant_id = $1 AND request_id = $2 AND kind = $5"
        " AND deployment_id IS NOT DISTINCT FROM $6"
        " AND connection_id IS NOT DISTINCT FROM $11 AND scopes = $7 AND name = $8"
        " AND expires_at IS NOT DISTINCT FROM $9 AND predecessor_key_id IS NULL"
        " AND first_used_at IS NULL AND revoked_at IS NULL RETURNING key_id",
        tenant_id,
        key.request_id,
        key.digest,
        key.hint,
        key.kind,
        id_of(OwnedKind.DEPLOYMENT, key.owned),
        sorted(key.scopes),
        key.name,
        key.expires_at,
        key.pepper_id,
        id_of(OwnedKind.CONNECTION, key.owned),
    )
    return KeyId(key_id) if key_id is not None else None


async def put_operator_key(connection: Connection, key: NewKey) -> KeyId | None:
    """Makes the key the operator's, and every earlier one of the same origin invalid.

    Returns the id whose meaning that changed; None when it was so before, or is new.
    """
    key_id = await connection.fetchval(
        "UPDATE keys SET digest = $2, hint = $3, scopes = $4, pepper_id = $5, revoked_at = NULL"
        " WHERE tenant_id IS NULL AND request_id = $1 AND (digest <> $2 OR scopes <> $4)"
        " RETURNING key_id",
        key.request_id,
        key.digest,
        key.hint,
        sorted(key.scopes),
        key.pepper_id,
    )
    await insert_key(connection, None, key)
    return KeyId(key_id) if key_id is not None else None


async def list_keys(
    connection: Connection,
    tenant_id: TenantId,
    owned: Sequence[Owned],
    after: tuple[datetime, str] | None,
    limit: int,
) -> list[Key]:
    """Returns keys, newest first, that come after the position `after`; none of jobs.

    Keys that open everything that is `owned`: of two things there are none.
    """
    asked = {one.kind: one.id for one in owned}
    rows = await connection.fetch(
        f"SELECT {KEY_COLUMNS} FROM keys WHERE tenant_id = $1 AND kind <> 'job'"  # noqa: S608 a constant
        " AND ($2::text IS NULL OR deployment_id = $2)"
        " AND ($6::text IS NULL OR connection_id = $6)"
        " AND ($3::timestamptz IS NULL OR (created_at, key_id) < ($3, $4))"
        " ORDER BY created_at DESC, key_id DESC LIMIT $5",
        tenant_id,
        asked.get(OwnedKind.DEPLOYMENT),
        after[0] if after else None,
        after[1] if after else None,
        limit,
        asked.get(OwnedKind.CONNECTION),
    )
    return [key_of(row) for row in rows]


async def delete_expired_jobs(connection: Connection, tenant_id: TenantId) -> None:
    """Forgets the keys of jobs that ended long ago."""
    await connection.execute(
        "DELETE FROM keys WHERE tenant_id = $1 AND kind = 'job'"
        " AND expires_at < now() - interval '1 day'",
        tenant_id,
    )


def found(row: "asyncpg.Record | None", kind: str) -> asyncpg.Record:
    """Returns the row.

    Raises:
        NotFoundError: there is none.
    """
    if row is None:
        raise NotFoundError(kind)
    return row


def _tenant(row: asyncpg.Record) -> Tenant:
    return Tenant(TenantId(row["tenant_id"]), row["name"], Plan(row["plan"]), row["created_at"])


def key_of(row: asyncpg.Record) -> Key:
    """Returns the key in a row of `KEY_COLUMNS`."""
    return Key(
        key_id=KeyId(row["key_id"]),
        kind=KeyKind(row["kind"]),
        owned=_owned(row),
        name=row["name"],
        scopes=frozenset(row["scopes"]),
        hint=row["hint"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
        expires_at=row["expires_at"],
        last_used_at=row["last_used_at"],
        successor=KeyId(row["successor_key_id"]) if row["successor_key_id"] else None,
        support_reason=row["support_reason"],
        announced=row["announced_sequence"],
    )


def _owned(row: asyncpg.Record) -> Owned | None:
    ids = ((kind, row[f"{kind}_id"]) for kind in OwnedKind)
    return next((Owned(kind, value) for kind, value in ids if value is not None), None)
