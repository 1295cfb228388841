"""The durable counts of months in Postgres: one function a query.

Every transaction is a service transaction: one batch is of the deployments of many tenants.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from services.ratelimit import erasure_store
from services.ratelimit.ledger import Counted, LocalUse, Replayed
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection, Database

# Of `rows`, which have the deployment as `id`.
_NOT_GONE: Final = (
    "NOT EXISTS (SELECT FROM releases r WHERE r.deployment_id = rows.id)"
    " AND NOT EXISTS (SELECT FROM tombstones t WHERE t.tenant_id = rows.tenant_id)"
)


class Known(NamedTuple):
    """What is durably known of a month: calls counted in Valkey, and calls still to be."""

    counted: int
    to_replay: int


class UsageStore:
    """Keeps what was used, so that it outlives Valkey."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(
        self, counts: Sequence[Counted], uses: Sequence[LocalUse], done: Sequence[Replayed] = ()
    ) -> None:
        """Writes counts and local use down, and what of it is in Valkey, in one transaction.

        No number ever becomes lower. What is gone is left out.
        """
        counted = [
            Counted(use.deployment_id, use.month, use.tenant_id, with_it) for use, with_it in done
        ]
        settled = [use._replace(replayed=use.used) for use, _ in done]
        async with self._database.service() as connection:
            await erasure_store.hold(connection)
            await _save_counts(connection, [*counts, *counted])
            await _save_uses(connection, uses)
            await _save_uses(connection, settled)

    async def known(self, wanted: Sequence[DeploymentId], month: str) -> list[Known]:
        """Returns what is known of the month of each deployment, in order."""
        async with self._database.service() as connection:
            rows = await connection.fetch(
                "SELECT coalesce(m.used, 0) AS counted, coalesce((SELECT sum(l.used - l.replayed)"
                "  FROM local_usage l WHERE l.deployment_id = w.id AND l.month = $2), 0)::bigint"
                "  AS to_replay"
                " FROM unnest($1::text[]) WITH ORDINALITY AS w(id, place)"
                " LEFT JOIN monthly_usage m ON m.deployment_id = w.id AND m.month = $2"
                " ORDER BY w.place",
                list(wanted),
                month,
            )
        return [Known(row["counted"], row["to_replay"]) for row in rows]

    async def to_replay(self, but: str, most: int) -> list[LocalUse]:
        """Returns local use that is not in Valkey yet, of all replicas `but` one; `most` of it."""
        async with self._database.service() as connection:
            rows = await connection.fetch(
                "SELECT l.replica_id, l.deployment_id, l.month, l.tenant_id, l.used, l.replayed,"
                "  coalesce(m.used, 0) AS floor"
                " FROM local_usage l LEFT JOIN monthly_usage m USING (deployment_id, month)"
                " WHERE l.replayed < l.used AND l.replica_id <> $1 LIMIT $2",
                but,
                most,
            )
        return [
            LocalUse(
                row["replica_id"],
                DeploymentId(row["deployment_id"]),
                row["month"],
                TenantId(row["tenant_id"]),
                row["used"],
                row["replayed"],
                row["floor"],
                None,
            )
            for row in rows
        ]

    async def purge(self, before: str) -> None:
        """Deletes the months before `before`, as `2025-10`."""
        async with self._database.service() as connection:
            await connection.execute("DELETE FROM monthly_usage WHERE month < $1", before)
            await connection.execute("DELETE FROM local_usage WHERE month < $1", before)
            await erasure_store.purge(connection)


async def _save_counts(connection: Connection, counts: Sequence[Counted]) -> None:
    if not counts:
        return
    # In the order of their keys, so that replicas that save at once wait and do not deadlock. One
    # row a key: a statement cannot write a row twice.
    await connection.execute(
        "INSERT INTO monthly_usage AS m (deployment_id, month, tenant_id, used)"  # noqa: S608 a constant
        " SELECT id, month, min(tenant_id), max(used)"
        " FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[])"
        "  AS rows(id, month, tenant_id, used)"
        f" WHERE {_NOT_GONE}"
        " GROUP BY id, month ORDER BY id, month"
        " ON CONFLICT (deployment_id, month) DO UPDATE"
        " SET used = GREATEST(m.used, excluded.used), updated_at = now()"
        " WHERE excluded.used > m.used",
        [each.deployment_id for each in counts],
        [each.month for each in counts],
        [each.tenant_id for each in counts],
        [each.used for each in counts],
    )


async def _save_uses(connection: Connection, uses: Sequence[LocalUse]) -> None:
    if not uses:
        return
    await connection.execute(
        "INSERT INTO local_usage AS l"  # noqa: S608 a constant
        "  (deployment_id, month, replica_id, tenant_id, used, replayed)"
        " SELECT id, month, replica_id, tenant_id, used, replayed"
        " FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[])"
        "  AS rows(id, month, replica_id, tenant_id, used, replayed)"
        f" WHERE {_NOT_GONE}"
        " ORDER BY id, month, replica_id"
        " ON CONFLICT (deployment_id, month, replica_id) DO UPDATE"
        " SET used = GREATEST(l.used, excluded.used),"
        "  replayed = GREATEST(l.replayed, excluded.replayed), updated_at = now()",
        [each.deployment_id for each in uses],
        [each.month for each in uses],
        [each.replica_id for each in uses],
        [each.tenant_id for each in uses],
        [each.used for each in uses],
        [each.replayed for each in uses],
    )
