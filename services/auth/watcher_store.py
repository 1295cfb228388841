"""The table of those who watch revocations, one function a query."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from services.auth.domain import Acknowledgement, Watcher
from services.shared.postgres import Connection

ACKNOWLEDGEMENTS_CHANNEL = "acknowledgements"
_LEASE = """
    WITH before AS (
        SELECT w.peer, w.watcher_id, w.acknowledged FROM revocation_watchers w
        WHERE w.watcher_id = ANY($2)
    ), leased AS (
        INSERT INTO revocation_watchers AS w (peer, watcher_id, acknowledged, leased_until)
        SELECT peer, watcher_id, least(acknowledged, $4), now() + $5
        FROM unnest($1::text[], $2::text[], $3::bigint[]) AS u (peer, watcher_id, acknowledged)
        ORDER BY peer, watcher_id
        ON CONFLICT (peer, watcher_id) DO UPDATE SET
            acknowledged = least(greatest(w.acknowledged, excluded.acknowledged), $4),
            leased_until = greatest(w.leased_until, excluded.leased_until)
        RETURNING peer, watcher_id, acknowledged
    )
    SELECT pg_notify('acknowledgements', '') WHERE EXISTS (
        SELECT FROM leased LEFT JOIN before USING (peer, watcher_id)
        WHERE before.acknowledged IS DISTINCT FROM leased.acknowledged
    )
"""


async def lease_trust(
    connection: Connection,
    acknowledgements: Sequence[Acknowledgement],
    last: int,
    lease: timedelta,
) -> None:
    """Writes what each watcher has forgotten, and leases it trust from the transaction's begin.

    Announced when one of them has forgotten more than before. No watcher can have forgotten what
    was not revoked yet: that one is of a time that this database has lost.
    """
    await connection.execute(
        _LEASE,
        [each.peer for each in acknowledgements],
        [each.watcher_id for each in acknowledgements],
        [each.sequence for each in acknowledgements],
        last,
        lease,
    )


async def read_watchers(connection: Connection) -> tuple[datetime, list[Watcher]]:
    """Returns the database's time, and who had a lease then or had one a moment before."""
    rows = await connection.fetch(
        "SELECT clock.at, w.peer, w.watcher_id, w.acknowledged, w.leased_until"
        " FROM (SELECT clock_timestamp() AS at) AS clock"
        " LEFT JOIN revocation_watchers w ON w.leased_until > now() - interval '1 minute'"
    )
    watchers = [
        Watcher(row["peer"], row["watcher_id"], row["acknowledged"], row["leased_until"])
        for row in rows
        if row["watcher_id"] is not None
    ]
    return rows[0]["at"], watchers


async def purge_watchers(connection: Connection, kept_seconds: float) -> None:
    """Deletes watchers that ended long ago."""
    await connection.execute(
        "DELETE FROM revocation_watchers WHERE leased_until < now() - make_interval(secs => $1)",
        kept_seconds,
    )
