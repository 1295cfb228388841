"""The table of revocations and their sequence, one function a query."""

from collections.abc import Sequence

from services.auth.domain import Revocation
from services.shared.ids import KeyId
from services.shared.postgres import Connection

REVOCATIONS_CHANNEL = "revocations"


async def last_revocation(connection: Connection) -> int:
    """Returns the number of the last revocation."""
    sequence: int | None = await connection.fetchval("SELECT sequence FROM revocation_sequence")
    assert sequence is not None  # noqa: S101 the migration wrote the row
    return sequence


async def revocations_after(connection: Connection, sequence: int) -> list[Revocation]:
    """Returns the revocations after `sequence`, in order."""
    rows = await connection.fetch(
        "SELECT sequence, key_ids FROM revocations WHERE sequence > $1 ORDER BY sequence", sequence
    )
    return [Revocation(row["sequence"], tuple(map(KeyId, row["key_ids"]))) for row in rows]


async def announce_revocation(connection: Connection, key_ids: Sequence[KeyId]) -> None:
    """Numbers the revocation and tells every watcher, once the transaction is committed."""
    sequence = await connection.fetchval(
        "UPDATE revocation_sequence SET sequence = sequence + 1 RETURNING sequence"
    )
    await connection.execute(
        "INSERT INTO revocations (sequence, key_ids) VALUES ($1, $2)", sequence, list(key_ids)
    )
    await connection.execute(f"NOTIFY {REVOCATIONS_CHANNEL}")
