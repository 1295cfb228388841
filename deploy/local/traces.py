"""A receiver of traces and metrics for one machine, and a trace as a tree for people to read.

Speaks OTLP over gRPC (opentelemetry.proto.collector), keeps a bounded number of spans in memory and
the names of metrics, and no more than that: it is for the demonstration and for tests.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb2
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from deploy.local.ports import LOOPBACK
from deploy.local.waiting import until

MOST_SPANS = 20_000
_NANOSECONDS_IN_MS = 1_000_000
_STATEMENTS = ("db.query.text", "db.statement")
_MOST_DETAIL = 60


@dataclass(frozen=True, slots=True)
class Span:
    """One step of a trace; ids are lower-case hex, times in nanoseconds since the epoch."""

    trace_id: str
    span_id: str
    # Empty for the first span of a trace.
    parent_id: str
    name: str
    service: str
    start: int
    end: int
    failed: bool = False
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) / _NANOSECONDS_IN_MS


class Traces(pb2_grpc.TraceServiceServicer):
    """The spans that were received last."""

    def __init__(self, most: int = MOST_SPANS) -> None:
        self._spans: deque[Span] = deque(maxlen=most)

    async def Export(  # noqa: N802 the contract's name
        self, request: pb2.ExportTraceServiceRequest, _context: object
    ) -> pb2.ExportTraceServiceResponse:
        """Keeps every span of the request."""
        self._spans.extend(spans_of(request))
        return pb2.ExportTraceServiceResponse()

    def spans(self, trace_id: str) -> list[Span]:
        """Returns what is known of a trace."""
        return [span for span in self._spans if span.trace_id == trace_id]

    async def wait_for(
        self, trace_id: str, complete: Callable[[Sequence[Span]], bool], seconds: float = 10.0
    ) -> list[Span]:
        """Returns the spans of a trace once `complete` says that none is missing.

        Raises:
            TimeoutError: it did not say so within `seconds`.
        """

        async def enough() -> bool:
            return complete(self.spans(trace_id))

        await until(enough, seconds)
        return self.spans(trace_id)


class Metrics(metrics_grpc.MetricsServiceServicer):
    """The names of the metrics that were received, by service."""

    def __init__(self) -> None:
        self._names: dict[str, set[str]] = {}

    async def Export(  # noqa: N802 the contract's name
        self, request: metrics_pb2.ExportMetricsServiceRequest, _context: object
    ) -> metrics_pb2.ExportMetricsServiceResponse:
        """Notes what is measured."""
        for resource in request.resource_metrics:
            service = _text(resource.resource.attributes).get("service.name", "")
            names = (metric.name for scope in resource.scope_metrics for metric in scope.metrics)
            self._names.setdefault(service, set()).update(names)
        return metrics_pb2.ExportMetricsServiceResponse()

    def names(self, service: str) -> frozenset[str]:
        """Returns the metrics that a service has sent."""
        return frozenset(self._names.get(service, ()))


@dataclass(frozen=True, slots=True)
class Receiver:
    """A running receiver: its OTLP endpoint as host:port, and what it has received."""

    endpoint: str
    traces: Traces
    metrics: Metrics


@asynccontextmanager
async def otlp_receiver(port: int = 0) -> AsyncIterator[Receiver]:
    """Receives spans and metrics for the length of the context; port 0 picks a free one."""
    traces, metrics = Traces(), Metrics()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb2_grpc.add_TraceServiceServicer_to_server(traces, server)  # type: ignore[no-untyped-call]
    metrics_grpc.add_MetricsServiceServicer_to_server(metrics, server)  # type: ignore[no-untyped-call]
    bound = server.add_insecure_port(f"{LOOPBACK}:{port}")
    await server.start()
    try:
        yield Receiver(f"{LOOPBACK}:{bound}", traces, metrics)
    finally:
        await server.stop(0)


def spans_of(request: pb2.ExportTraceServiceRequest) -> list[Span]:
    """Returns the spans of an export."""
    return [
        _span(span, _text(resource.resource.attributes).get("service.name", ""))
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def render(spans: Iterable[Span]) -> str:
    """Returns the spans of one trace as a tree, children in order of their start.

    A line holds the service and the name, when it began after the first, and how long it took, in
    milliseconds. A span whose parent is not among them stands at the top.
    """
    ordered = sorted(spans, key=lambda span: (span.start, -span.end, span.span_id))
    if not ordered:
        return "no spans"
    known = {span.span_id for span in ordered}
    children: dict[str, list[Span]] = {}
    for span in ordered:
        children.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    rows = list(_rows(children, "", ""))
    width = max(len(label) for label, _ in rows)
    first = ordered[0].start
    return "\n".join(f"{label:<{width}}  {_times(span, first)}" for label, span in rows)


def _rows(
    children: Mapping[str, Sequence[Span]], parent: str, indent: str
) -> Iterable[tuple[str, Span]]:
    siblings = children.get(parent, ())
    for position, span in enumerate(siblings, 1):
        last = position == len(siblings)
        branch = ("└─ " if last else "├─ ") if parent else ""
        yield f"{indent}{branch}{_label(span)}", span
        deeper = indent + (("   " if last else "│  ") if parent else "")
        yield from _rows(children, span.span_id, deeper)


def _label(span: Span) -> str:
    statement = next((span.attributes[name] for name in _STATEMENTS if name in span.attributes), "")
    detail = " ".join(statement.split())
    if len(detail) > _MOST_DETAIL:
        detail = detail[: _MOST_DETAIL - 1] + "…"
    named = detail or span.name
    return f"{span.service}  " + (named if named.startswith(span.name) else f"{span.name}  {named}")


def _times(span: Span, first: int) -> str:
    after = (span.start - first) / _NANOSECONDS_IN_MS
    failed = "  failed" if span.failed else ""
    return f"+{after:8.1f}  {span.milliseconds:8.1f} ms{failed}"


def _span(span: trace_pb2.Span, service: str) -> Span:
    return Span(
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        name=span.name,
        service=service,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_text(span.attributes),
    )


def _text(attributes: Iterable[KeyValue]) -> dict[str, str]:
    """Returns the attributes with their values as text, whatever their type."""
    return {
        each.key: str(getattr(each.value, each.value.WhichOneof("value") or "string_value"))
        for each in attributes
    }
