"""Where spans and figures go; and what is cheap to know before one is made.

Who records is given a `Recording`, and asks it before anything else: where nobody wants spans or
figures there is nothing to call. The trace that a call is part of is passed on all the same, so
that logs and the audit log can name it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar, runtime_checkable

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.trace import SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from services.shared.passing import TRACE_PARENT, Passed, is_kept, passed
from services.shared.settings import TelemetrySettings

SCOPE: Final = "bulkhead"
# Seconds, as the semantic conventions advise for durations of calls and of requests.
CALL_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
# The same for operations of stores.
STORE_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
# Of W3C alone: baggage is whatever a stranger wrote into it.
_W3C: Final = TraceContextTextMapPropagator()
_FAILED: Final = Status(StatusCode.ERROR)

Labels = Mapping[str, str]
Known = TypeVar("Known")
# What is read when somebody looks: values, each with its labels.
Read = Callable[[], Iterable[tuple[float, Labels]]]


class Duration(Protocol):
    """A histogram's durations with one set of labels."""

    def record(self, seconds: float) -> None:
        """Counts a duration."""
        ...


class Durations(Protocol):
    """A histogram of durations, in seconds."""

    def of(self, labels: Labels) -> Duration:
        """Returns what counts those with these labels; it is to be kept, not asked for each."""
        ...


class DurationsBy(Generic[Known]):
    """A histogram of durations, by what is known of what took so long: out of a small set."""

    def __init__(self, durations: Durations, labels: Callable[[Known], Labels]) -> None:
        self._durations = durations
        self._labels = labels
        self._by: dict[Known, Duration] = {}

    def record(self, known: Known, seconds: float) -> None:
        """Counts a duration."""
        duration = self._by.get(known)
        if duration is None:
            duration = self._by[known] = self._durations.of(self._labels(known))
        duration.record(seconds)


@runtime_checkable
class Quickening(Protocol):
    """Makes recording into its histograms cheap; see `metering.py`."""

    def quick(self, histogram: metrics.Histogram) -> Durations:
        """Returns what records into `histogram`."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """Records into a histogram as the interface has it."""

    histogram: metrics.Histogram

    def of(self, labels: Labels) -> Duration:
        """Returns what counts durations with these labels."""
        return _PlainDuration(self.histogram, labels)


@dataclass(frozen=True, slots=True)
class _PlainDuration:
    histogram: metrics.Histogram
    labels: Labels

    def record(self, seconds: float) -> None:
        """Counts a duration."""
        self.histogram.record(seconds, self.labels)


@dataclass(frozen=True, slots=True)
class Recording:
    """Where spans and figures go; None: nobody wants them."""

    tracers: trace.TracerProvider | None = None
    meters: metrics.MeterProvider | None = None

    @classmethod
    def of(cls, settings: TelemetrySettings) -> "Recording":
        """Returns what the process of these settings records into."""
        return cls(
            trace.get_tracer_provider() if settings.is_traced else None,
            metrics.get_meter_provider() if settings.is_measured else None,
        )

    def tracer(self) -> "Tracer | None":
        """Returns what makes spans; None where nobody wants them."""
        return None if self.tracers is None else Tracer(self.tracers.get_tracer(SCOPE))

    def meter(self, part: str = "") -> metrics.Meter | None:
        """Returns what makes instruments; None where nobody wants figures.

        What there are several of in one process, such as pools, are parts, each with instruments
        of the same names.
        """
        scope = f"{SCOPE}.{part}" if part else SCOPE
        return None if self.meters is None else self.meters.get_meter(scope)

    def durations(self, histogram: metrics.Histogram) -> Durations:
        """Returns the cheapest way to record into a histogram of this recording."""
        meters = self.meters
        return meters.quick(histogram) if isinstance(meters, Quickening) else Plain(histogram)


UNRECORDED: Final = Recording()


@dataclass(frozen=True, slots=True)
class Tracer:
    """Makes spans, and none where they would not be kept."""

    _tracer: trace.Tracer

    def entry(
        self, name: str, context: Context | None, attributes: Labels | None = None
    ) -> trace.Span | None:
        """Returns a span for what enters this process; None when its trace is not sampled."""
        if context is not None and not is_kept(context):
            return None
        return self._tracer.start_span(
            name, context or Context(), SpanKind.SERVER, attributes=attributes
        )

    def step(self, name: str, attributes: Labels | None = None) -> trace.Span | None:
        """Returns a span for a call to another; None outside of a span that is kept."""
        if not trace.get_current_span().is_recording():
            return None
        return self._tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)

    def past(self, name: str, attributes: Labels, begin: int, error: str) -> None:
        """Makes a span of a call that began at `begin` (ns since the epoch) and has just ended."""
        if not trace.get_current_span().is_recording():
            return
        span = self._tracer.start_span(
            name, kind=SpanKind.CLIENT, attributes=attributes, start_time=begin
        )
        if error:
            fail(span, error)
        span.end()


def fail(span: trace.Span, reason: str) -> None:
    """Marks a span as failed, for a reason out of a small set: never the text of an error."""
    span.set_attribute("error.type", reason)
    span.set_status(_FAILED)


def incoming(carrier: Mapping[str, str]) -> Context | None:
    """Returns the context of the trace that `carrier` is part of; None without one."""
    if TRACE_PARENT not in carrier:
        return None
    context = passed(carrier)
    if context is not None:
        return context
    context = _W3C.extract(carrier)
    return context if trace.get_current_span(context).get_span_context().is_valid else None


def outgoing(span: trace.Span | None = None) -> dict[str, str]:
    """Returns what makes a call part of the trace: below `span`, or below the current one."""
    if span is None and isinstance(current := trace.get_current_span(), Passed):
        return {TRACE_PARENT: current.trace_parent}
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, None if span is None else trace.set_span_in_context(span))
    return carrier


def observing(read: Read) -> "list[Callable[[CallbackOptions], Iterable[Observation]]]":
    """Returns the callbacks of an instrument whose values are read when somebody looks."""

    def observed(_options: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, labels) for value, labels in read()]

    return [observed]
