"""The processes that decide, as rows in Postgres: one function a query. Its clock alone counts."""

from services.shared.postgres import Database


class ReplicaStore:
    """Says who lives."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def beat(self, replica_id: str, dead_after_seconds: float) -> int:
        """Returns how many were seen within `dead_after_seconds`, this one with them."""
        async with self._database.service() as connection:
            await connection.execute(
                "INSERT INTO replicas (replica_id, seen_at) VALUES ($1, clock_timestamp())"
                " ON CONFLICT (replica_id) DO UPDATE SET seen_at = excluded.seen_at",
                replica_id,
            )
            count: int = await connection.fetchval(
                "SELECT count(*) FROM replicas WHERE seen_at > clock_timestamp()"
                " - make_interval(secs => $1)",
                dead_after_seconds,
            )
        return count

    async def leave(self, replica_id: str) -> None:
        """Takes the replica out, and those that died days ago."""
        async with self._database.service() as connection:
            await connection.execute(
                "DELETE FROM replicas"
                " WHERE replica_id = $1 OR seen_at < clock_timestamp() - interval '2 days'",
                replica_id,
            )
