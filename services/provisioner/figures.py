"""What the provisioner tells about its work: what came of it, and how much there is."""

import asyncio
from typing import Final

import structlog
from opentelemetry import metrics

from services.provisioner import figures_store as store
from services.provisioner.domain import (
    Operation,
    OperationKind,
    OperationState,
    ResourceState,
    Step,
)
from services.shared.clock import utc_now
from services.shared.errors import UnavailableError
from services.shared.postgres import Database

CENSUS_SECONDS: Final = 15.0
# Seconds: from a row that is written to a database that is copied.
_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)


class WorkFigures:
    """What came of operations and their steps."""

    def __init__(self, meter: metrics.Meter) -> None:
        self._duration = meter.create_histogram(
            "bulkhead.provisioner.operation.duration",
            "s",
            "From asking for an operation to its end, by kind and outcome.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._failures = meter.create_counter(
            "bulkhead.provisioner.step.failures",
            "{failure}",
            "Steps that failed and are tried again, or have ended their operation.",
        )

    def ended(self, operation: Operation, state: OperationState) -> None:
        """Counts an operation that has ended."""
        seconds = max(0.0, (utc_now() - operation.create_time).total_seconds())
        self._duration.record(seconds, {"kind": operation.kind, "outcome": state})

    def failed(self, kind: OperationKind, step: Step) -> None:
        """Counts a step that failed."""
        self._failures.add(1, {"kind": kind, "step": step})


class Census:
    """Counts what all replicas have to do together, again and again."""

    def __init__(self, database: Database, meter: metrics.Meter) -> None:
        self._database = database
        self._entries = meter.create_gauge(
            "bulkhead.provisioner.queue.entries", "{entry}", "Entries of the queue, by state."
        )
        self._late = meter.create_gauge(
            "bulkhead.provisioner.queue.lateness",
            "s",
            "Since when the entry that waits longest could have been taken.",
        )
        self._databases = meter.create_gauge(
            "bulkhead.provisioner.databases", "{database}", "Databases, by state."
        )
        self._running = meter.create_gauge(
            "bulkhead.provisioner.operations", "{operation}", "Operations under way, by kind."
        )

    async def take(self) -> None:
        """Counts once.

        Raises:
            UnavailableError: the rows cannot be read.
        """
        async with self._database.service() as connection:
            depth = await store.queue_depth(connection)
            databases = await store.count_databases(connection)
            running = await store.count_running(connection)
        self._entries.set(depth.waiting, {"state": "waiting"})
        self._entries.set(depth.taken, {"state": "taken"})
        self._late.set(depth.late_seconds)
        # Each of them, so that what is over is told as well.
        for state in ResourceState:
            self._databases.set(databases.get(state, 0), {"state": state})
        for kind in OperationKind:
            self._running.set(running.get(kind, 0), {"kind": kind})

    async def run(self) -> None:
        """Counts for ever."""
        while True:
            try:
                await self.take()
            except UnavailableError:
                structlog.get_logger().warning("work cannot be counted")
            await asyncio.sleep(CENSUS_SECONDS)
