"""Under which pepper keys are stored, one function a query."""

from collections.abc import Mapping

from services.shared.postgres import Connection


async def move_keys(connection: Connection, moves: Mapping[bytes, bytes], pepper_id: str) -> None:
    """Stores each key with the digest on the left under the one on the right, of this pepper.

    A key that another transaction is changing is left alone: its next use moves it. So this never
    waits, and two replicas that move the same keys do not stop each other.
    """
    await connection.execute(
        """
        UPDATE keys SET digest = moves.new, pepper_id = $3
        FROM unnest($1::bytea[], $2::bytea[]) AS moves (old, new),
             (SELECT key_id, digest FROM keys WHERE digest = ANY($1) FOR UPDATE SKIP LOCKED) AS free
        WHERE free.digest = moves.old AND keys.key_id = free.key_id
        """,
        list(moves),
        list(moves.values()),
        pepper_id,
    )


async def adopt_keys(connection: Connection, pepper_id: str) -> None:
    """Says of keys that were stored before peppers had ids that they are under this one."""
    await connection.execute(
        "UPDATE keys SET pepper_id = $1 WHERE key_id IN"
        " (SELECT key_id FROM keys WHERE pepper_id IS NULL FOR UPDATE SKIP LOCKED)",
        pepper_id,
    )


async def count_keys(connection: Connection) -> dict[str | None, int]:
    """Returns how many valid keys are stored under each pepper; None where it is not known."""
    rows = await connection.fetch(
        "SELECT pepper_id, count(*) AS keys FROM keys WHERE revoked_at IS NULL"
        " AND (expires_at IS NULL OR expires_at > now()) GROUP BY pepper_id"
    )
    return {row["pepper_id"]: row["keys"] for row in rows}
