"""The end of keys: revoked, replaced, or ended with their deployment or tenant."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from services.auth.domain import Key, NewKey, Owned
from services.auth.revocation_store import announce_revocation
from services.auth.store import KEY_COLUMNS, found, key_of
from services.shared.ids import KeyId, TenantId
from services.shared.postgres import Connection

# What the log calls it when keys end: by these lines a restored database learns of it again.
KEYS_ENDED: Final = "keys ended"
# Runtimes of containers cut lines at 16 KiB, and no id may get lost.
_MOST_IN_A_LINE: Final = 100


@dataclass(frozen=True, slots=True)
class Ending:
    """Keys that are about to be revoked together, and how many of them are valid."""

    key_ids: tuple[KeyId, ...]
    valid: int


async def get_key(
    connection: Connection, tenant_id: TenantId, key_id: KeyId, *, lock: bool = False
) -> tuple[Key, datetime]:
    """Returns the key, and the time by which it is judged; `lock` holds it until the commit.

    Raises:
        NotFoundError: unknown, another tenant's, or a job's.
    """
    row = await connection.fetchrow(
        f"SELECT now() AS now, {KEY_COLUMNS} FROM keys"  # noqa: S608 a constant
        " WHERE tenant_id = $1 AND key_id = $2 AND kind <> 'job'" + (" FOR UPDATE" if lock else ""),
        tenant_id,
        key_id,
    )
    existing = found(row, "key")
    return key_of(existing), existing["now"]


async def end_keys(
    connection: Connection, tenant_id: TenantId, key_ids: Sequence[KeyId]
) -> tuple[int, datetime]:
    """Revokes the locked keys; returns the revocation and its time."""
    sequence = await announce_revocation(connection, key_ids)
    revoked_at: datetime | None = await connection.fetchval(
        "UPDATE keys SET revoked_at = now(), announced_sequence = $3"
        " WHERE tenant_id = $1 AND key_id = ANY($2) RETURNING revoked_at",
        tenant_id,
        list(key_ids),
        sequence,
    )
    assert revoked_at is not None  # noqa: S101 the keys are locked
    tell_ended(key_ids, revoked_at)
    return sequence, revoked_at


def tell_ended(key_ids: Sequence[KeyId], at: datetime) -> None:
    """Tells the log which keys end when; not after the call that ends them was answered.

    So it is known outside of the database too, if that is lost and an earlier one restored.
    """
    for begin in range(0, len(key_ids), _MOST_IN_A_LINE):
        some = list(key_ids[begin : begin + _MOST_IN_A_LINE])
        structlog.get_logger().info(KEYS_ENDED, key_ids=some, at=at.isoformat())


async def replace_key(
    connection: Connection, tenant_id: TenantId, key: NewKey
) -> tuple[int, datetime]:
    """Lets the locked predecessor of `key` end, now or after its grace period.

    Returns the revocation that tells so, and the time of the end: never later than it was.
    """
    sequence = await announce_revocation(connection, [key.predecessor] if key.predecessor else [])
    ends_at: datetime | None = await connection.fetchval(
        "UPDATE keys SET successor_key_id = $3, announced_sequence = $4,"
        " expires_at = least(expires_at, now() + $5::interval),"
        " revoked_at = CASE WHEN $5 = interval '0' THEN now() END"
        " WHERE tenant_id = $1 AND key_id = $2 RETURNING coalesce(revoked_at, expires_at)",
        tenant_id,
        key.predecessor,
        key.key_id,
        sequence,
        key.grace,
    )
    assert ends_at is not None  # noqa: S101 the key is locked
    tell_ended([key.predecessor] if key.predecessor else [], ends_at)
    return sequence, ends_at


async def made_before(connection: Connection, tenant_id: TenantId, request_id: str) -> bool:
    """Whether a request made a key before."""
    row = await connection.fetchrow(
        "SELECT 1 FROM keys WHERE tenant_id = $1 AND request_id = $2", tenant_id, request_id
    )
    return row is not None


async def reissue_successor(
    connection: Connection, tenant_id: TenantId, key: NewKey
) -> tuple[KeyId, datetime | None] | None:
    """Gives the successor that the same, repeated request made a fresh secret, if it was not used.

    Returns its id and when it expires; None when it was used or revoked, or the request was other.
    """
    row = await connection.fetchrow(
        "UPDATE keys SET digest = $3, hint = $4, pepper_id = $7"
        " WHERE tenant_id = $1 AND request_id = $2 AND predecessor_key_id = $5"
        " AND grace_period = $6 AND first_used_at IS NULL AND revoked_at IS NULL"
        " RETURNING key_id, expires_at",
        tenant_id,
        key.request_id,
        key.digest,
        key.hint,
        key.predecessor,
        key.grace,
        key.pepper_id,
    )
    return (KeyId(row["key_id"]), row["expires_at"]) if row is not None else None


async def lock_keys_of(connection: Connection, tenant_id: TenantId, owned: Owned) -> Ending:
    """Returns the deployment's or connection's keys that are not revoked, and holds them."""
    rows = await connection.fetch(
        "SELECT key_id, expires_at IS NULL OR expires_at > now() AS valid FROM keys"  # noqa: S608 a kind
        f" WHERE tenant_id = $1 AND {owned.kind}_id = $2 AND revoked_at IS NULL"
        " ORDER BY key_id FOR UPDATE",
        tenant_id,
        owned.id,
    )
    return Ending(tuple(KeyId(row["key_id"]) for row in rows), sum(row["valid"] for row in rows))


async def lock_keys_of_tenant(
    connection: Connection, tenant_id: TenantId, but: KeyId | None
) -> Ending:
    """Returns the tenant's keys that are not revoked, all `but` one, and holds them."""
    rows = await connection.fetch(
        "SELECT key_id, expires_at IS NULL OR expires_at > now() AS valid FROM keys"
        " WHERE tenant_id = $1 AND key_id IS DISTINCT FROM $2 AND revoked_at IS NULL"
        " ORDER BY key_id FOR UPDATE",
        tenant_id,
        but,
    )
    return Ending(tuple(KeyId(row["key_id"]) for row in rows), sum(row["valid"] for row in rows))
