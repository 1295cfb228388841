"""The keys that the operator gave itself, one function a query."""

from datetime import datetime, timedelta

from services.auth.domain import NewKey
from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Connection


async def limit_key(
    connection: Connection, key_id: KeyId, reason: str, lifetime: timedelta
) -> datetime:
    """Makes the new key one of the operator's; returns when it expires."""
    expires_at: datetime | None = await connection.fetchval(
        "UPDATE keys SET support_reason = $2, expires_at = created_at + $3"
        " WHERE key_id = $1 RETURNING expires_at",
        key_id,
        reason,
        lifetime,
    )
    assert expires_at is not None  # noqa: S101 the same transaction wrote the row
    return expires_at


async def reissue_key(
    connection: Connection, tenant_id: TenantId, key: NewKey, reason: str, lifetime: timedelta
) -> tuple[KeyId, datetime] | None:
    """Gives the key of the same, repeated request a fresh secret, if it was never used.

    Returns its id and when it expires, as the first time; None when it was used, revoked or has
    expired, or was asked for with other content.
    """
    row = await connection.fetchrow(
        "UPDATE keys SET digest = $3, hint = $4, pepper_id = $5"
        " WHERE tenant_id = $1 AND request_id = $2 AND issued_by = $6 AND scopes = $7"
        " AND support_reason = $8 AND expires_at = created_at + $9 AND expires_at > now()"
        " AND first_used_at IS NULL AND revoked_at IS NULL RETURNING key_id, expires_at",
        tenant_id,
        key.request_id,
        key.digest,
        key.hint,
        key.pepper_id,
        key.issued_by,
        sorted(key.scopes),
        reason,
        lifetime,
    )
    return (KeyId(row["key_id"]), row["expires_at"]) if row is not None else None
