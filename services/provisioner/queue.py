"""Which subjects have work to be done: pgqueuer, in the same transaction as the rows.

An entry only says "look at this one"; what is to be done stands in the rows. So an entry too
many does no harm, and one too few is made up for by the sweep.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import structlog
from pgqueuer import AsyncpgDriver, Queries, QueueManager
from pgqueuer.models import Job

from services.provisioner.ports import Subject
from services.shared.postgres import Connection, connect
from services.shared.recording import outgoing
from services.shared.settings import PostgresSettings

_ENTRYPOINT = "reconcile"
# Notifications wake the worker; this is for the one that got lost.
_POLL = timedelta(seconds=5)
_RESTART_SECONDS = 0.5
_BATCH = 4
# Entries that are taken and wait for their turn, or have it: more than any tenant could fill.
_MOST_TAKEN = 512

# Returns how long to wait before looking at the subject again; None when nothing is left to do.
Reconcile = Callable[[str, dict[str, str]], Awaitable[timedelta | None]]


class WorkQueue:
    """Enters subjects into the queue, which belongs to the role `service_role`."""

    def __init__(self, service_role: str) -> None:
        self._service_role = service_role

    async def enqueue(self, connection: Connection, subject: Subject) -> None:
        """Enters the subject; see `enqueue_all`."""
        await self.enqueue_all(connection, [subject])

    async def enqueue_all(self, connection: Connection, subjects: Sequence[Subject]) -> None:
        """Enters the subjects; it counts when the transaction commits.

        The rest of the transaction runs as the service's role.
        """
        await connection.execute("SELECT set_config('role', $1, true)", self._service_role)
        trace = outgoing()
        queries = Queries(AsyncpgDriver(connection))  # type: ignore[arg-type]  # a pool's connection is one
        await queries.enqueue(
            [_ENTRYPOINT] * len(subjects),
            [subject.encode() for subject in subjects],
            [0] * len(subjects),
            headers=[trace] * len(subjects),
        )


async def work(settings: PostgresSettings, reconcile: Reconcile, heartbeat: timedelta) -> None:
    """Takes entries and calls `reconcile` for each, for ever.

    An entry whose worker has given no sign for `heartbeat` is taken by another.
    """
    while True:
        try:
            await _work_once(settings, reconcile, heartbeat)
        except Exception as error:  # noqa: BLE001 the work must go on when the database is back
            structlog.get_logger().warning("queue lost", error=type(error).__name__)
        await asyncio.sleep(_RESTART_SECONDS)


async def _work_once(
    settings: PostgresSettings, reconcile: Reconcile, heartbeat: timedelta
) -> None:
    connection = await connect(settings)
    lost = asyncio.Event()
    connection.add_termination_listener(lambda _: lost.set())
    queries = Queries(AsyncpgDriver(connection))
    worker = QueueManager(queries)

    @worker.entrypoint(_ENTRYPOINT)
    async def look(job: Job) -> None:
        subject = (job.payload or b"").decode()
        trace = {name: str(value) for name, value in (job.headers or {}).items()}
        wait = await reconcile(subject, trace)
        if wait is not None:
            # A new entry: it notifies the workers, which pgqueuer's own retry does not.
            await queries.enqueue(_ENTRYPOINT, job.payload, execute_after=wait, headers=trace)

    running = asyncio.create_task(
        worker.run(
            dequeue_timeout=_POLL,
            batch_size=_BATCH,
            max_concurrent_tasks=_MOST_TAKEN,
            shutdown_on_listener_failure=True,
            heartbeat_timeout=heartbeat,
        )
    )
    losing = asyncio.create_task(lost.wait())
    try:
        await asyncio.wait({running, losing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        worker.shutdown.set()
        losing.cancel()
        running.cancel()
        try:
            await asyncio.gather(running, losing, return_exceptions=True)
        finally:
            connection.terminate()
    if not running.cancelled() and (error := running.exception()) is not None:
        raise error
