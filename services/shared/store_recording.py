"""Spans and durations of what is asked of Postgres and Valkey, and figures of pools."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from opentelemetry import trace

from services.shared.recording import (
    STORE_BUCKETS,
    DurationsBy,
    Labels,
    Recording,
    fail,
    observing,
)

# The protocol's name in the semantic conventions.
_VALKEY: Final = "redis"
_POSTGRES: Final = "postgresql"
_MOST_WORD: Final = 20
# An operation, and the code or the type of what was wrong with it; both out of small sets.
_Ended = tuple[str, str]


class Statements:
    """Records statements of one database: their texts, never their parameters."""

    def __init__(self, recording: Recording, database: str) -> None:
        self._tracer = recording.tracer()
        self._durations = _durations(recording, _POSTGRES)
        self._database = database

    async def follow(self, connection: Any) -> None:
        """Makes a new connection of a pool tell of its statements."""
        connection.add_query_logger(self.note)

    def note(self, query: Any) -> None:
        """Records a statement that has ended, in the context in which it was sent."""
        operation = _first_word(query.query)
        error = "" if query.exception is None else _error_of(query.exception)
        if self._durations is not None:
            self._durations.record((operation, error), query.elapsed)
        if self._tracer is not None:
            described = {
                "db.system.name": _POSTGRES,
                "db.namespace": self._database,
                "db.operation.name": operation,
                "db.query.text": query.query,
            }
            begin = time.time_ns() - int(query.elapsed * 1e9)
            self._tracer.past(operation, described, begin, error)


class Commands:
    """Records commands to Valkey: their names, never their keys and values."""

    def __init__(self, recording: Recording) -> None:
        self._tracer = recording.tracer()
        self._durations = _durations(recording, _VALKEY)

    def begun(self, command: str) -> trace.Span | None:
        """Returns the span of a command that begins, if it has one."""
        if self._tracer is None:
            return None
        return self._tracer.step(command, {"db.system.name": _VALKEY, "db.operation.name": command})

    def ended(
        self, command: str, span: trace.Span | None, seconds: float, error: BaseException | None
    ) -> None:
        """Records a command that has ended."""
        why = "" if error is None else _error_of(error)
        if self._durations is not None:
            self._durations.record((command, why), seconds)
        if span is not None:
            if why:
                fail(span, why)
            span.end()


def observe_pool(
    recording: Recording,
    name: str,
    *,
    size: Callable[[], int],
    idle: Callable[[], int],
    waiting: Callable[[], int],
    most: int,
) -> None:
    """Makes the figures of a pool of connections known, under its own name."""
    meter = recording.meter(f"pool.{name}")
    if meter is None:
        return
    pool = {"db.client.connection.pool.name": name}

    def connections() -> Iterable[tuple[float, Labels]]:
        free = idle()
        yield free, pool | {"db.client.connection.state": "idle"}
        yield size() - free, pool | {"db.client.connection.state": "used"}

    meter.create_observable_up_down_counter(
        "db.client.connection.count",
        observing(connections),
        "{connection}",
        "Connections of a pool, by what they are doing.",
    )
    meter.create_observable_up_down_counter(
        "db.client.connection.max",
        observing(lambda: [(most, pool)]),
        "{connection}",
        "Connections that a pool may have.",
    )
    meter.create_observable_up_down_counter(
        "db.client.connection.pending_requests",
        observing(lambda: [(waiting(), pool)]),
        "{request}",
        "Callers that wait for a connection of a pool.",
    )


def _durations(recording: Recording, system: str) -> DurationsBy[_Ended] | None:
    meter = recording.meter()
    if meter is None:
        return None
    histogram = meter.create_histogram(
        "db.client.operation.duration",
        "s",
        "Time until stores answered.",
        explicit_bucket_boundaries_advisory=STORE_BUCKETS,
    )

    def labels(ended: _Ended) -> Labels:
        operation, error = ended
        described = {"db.system.name": system, "db.operation.name": operation}
        return described | ({"error.type": error} if error else {})

    return DurationsBy(recording.durations(histogram), labels)


def _first_word(query: str) -> str:
    words = query[: 2 * _MOST_WORD].split(None, 1) if query[:1].isalpha() else query.split(None, 1)
    return words[0][:_MOST_WORD].rstrip(";").upper() if words else ""


def _error_of(error: BaseException) -> str:
    """Returns the server's code where it gave one, else the name of the error's type."""
    return str(getattr(error, "sqlstate", None) or type(error).__name__)
