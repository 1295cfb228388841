"""SQL: how much there is to do, and how many databases are awake."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.provisioner.domain import OperationKind, ResourceState
from services.shared.postgres import Connection


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """How much waits for a worker."""

    waiting: int
    taken: int
    # Since when the entry that has waited longest could have been taken.
    late_seconds: float


async def queue_depth(connection: Connection) -> QueueDepth:
    """Returns how many entries wait for their time or a worker, and how many are worked on."""
    row = await connection.fetchrow(
        "SELECT count(*) FILTER (WHERE status = 'queued') AS waiting,"
        " count(*) FILTER (WHERE status = 'picked') AS taken,"
        " greatest(0, extract(epoch FROM now() - min(execute_after)"
        "  FILTER (WHERE status = 'queued')))::float8 AS late FROM pgqueuer"
    )
    assert row is not None  # noqa: S101 an aggregate has one row
    return QueueDepth(row["waiting"], row["taken"], row["late"] or 0.0)


async def count_databases(connection: Connection) -> Mapping[ResourceState, int]:
    """Returns how many databases of all tenants are in each state."""
    rows = await connection.fetch(
        "SELECT state, count(*) AS number FROM resources WHERE kind = 'database' GROUP BY state"
    )
    return {ResourceState(row["state"]): row["number"] for row in rows}


async def count_running(connection: Connection) -> Mapping[OperationKind, int]:
    """Returns how many operations of each kind have not ended."""
    rows = await connection.fetch(
        "SELECT kind, count(*) AS number FROM operations WHERE state = 'running' GROUP BY kind"
    )
    return {OperationKind(row["kind"]): row["number"] for row in rows}
