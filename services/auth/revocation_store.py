"""The table of revocations and their sequence, one function a query."""

from collections.abc import Sequence

from services.auth.domain import Revocation
from services.shared.ids import KeyId
from services.shared.postgres import Connection

REVOCATIONS_CHANNEL = "revocations"

# Whoever holds the number and falls silent holds up all revocations: the server gives up on it.
_HOLD = """
    SELECT sequence FROM revocation_sequence,
           set_config('idle_in_transaction_session_timeout', '5s', true)
    FOR SHARE OF revocation_sequence
"""
_ANNOUNCE = """
    WITH next AS (
        UPDATE revocation_sequence SET sequence = sequence + 1 RETURNING sequence
    ), written AS (
        INSERT INTO revocations (sequence, key_ids) SELECT sequence, $1::text[] FROM next
    )
    SELECT next.sequence FROM next,
           set_config('idle_in_transaction_session_timeout', '5s', true),
           pg_notify('revocations', '')
"""


async def last_revocation(connection: Connection) -> int:
    """Returns the number of the last revocation."""
    sequence: int | None = await connection.fetchval("SELECT sequence FROM revocation_sequence")
    assert sequence is not None  # noqa: S101 the migration wrote the row
    return sequence


async def hold_last_revocation(connection: Connection) -> int:
    """Returns the number of the last revocation; no other is committed until this transaction is.

    So a lease is granted either before a revocation, which then sees it, or by one who knows of it.
    """
    sequence: int | None = await connection.fetchval(_HOLD)
    assert sequence is not None  # noqa: S101 the migration wrote the row
    return sequence


async def revocations_after(
    connection: Connection, sequence: int, most: int | None = None
) -> list[Revocation]:
    """Returns the revocations after `sequence` that are kept, in order, at most `most`."""
    rows = await connection.fetch(
        "SELECT sequence, key_ids FROM revocations WHERE sequence > $1 ORDER BY sequence LIMIT $2",
        sequence,
        most,
    )
    return [Revocation(row["sequence"], tuple(map(KeyId, row["key_ids"]))) for row in rows]


async def announce_revocation(connection: Connection, key_ids: Sequence[KeyId]) -> int:
    """Returns the revocation's number; every watcher is told, once the transaction is committed.

    The number is locked until then, which puts revocations in the order of commit: be brief.
    """
    sequence: int | None = await connection.fetchval(_ANNOUNCE, list(key_ids))
    assert sequence is not None  # noqa: S101 the migration wrote the row
    return sequence


async def purge_revocations(connection: Connection, kept_seconds: float) -> None:
    """Deletes revocations that every living watcher has heard of long ago."""
    await connection.execute(
        "DELETE FROM revocations WHERE revoked_at < now() - make_interval(secs => $1)",
        kept_seconds,
    )
