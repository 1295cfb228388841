"""The SDK's side of telemetry: what is exported, to whom, and how much may wait for that."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from threading import Thread
from typing import Final
from uuid import uuid4

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from services.shared.metering import Meters
from services.shared.prometheus import serving_metrics
from services.shared.settings import TelemetrySettings

_NAMESPACE: Final = "bulkhead"
# Each export costs about the same, whatever is in it.
_SPANS_DELAY_MILLIS: Final = 1_000
_METRICS_INTERVAL_MILLIS: Final = 60_000
# A receiver that answers no sooner is as good as away.
_EXPORT_SECONDS: Final = 2.0
# Spans that wait for the receiver; what is beyond is dropped.
_MOST_SPANS: Final = 4_096
_MOST_SPANS_AT_ONCE: Final = 512
_MOST_ATTRIBUTE: Final = 1_000
# What is still to be sent at the end is dropped after.
_FAREWELL_SECONDS: Final = 2.0


@contextmanager
def exporting(service: str, settings: TelemetrySettings) -> Iterator[None]:
    """Records for the length of the block; see `telemetry.exported`."""
    resource = resource_of(service)
    with ExitStack() as stack:
        readers: list[MetricReader] = []
        if settings.metrics_listen:
            readers.append(stack.enter_context(serving_metrics(settings.metrics_listen)))
        if settings.otlp_endpoint:
            readers.append(_metrics_to(settings.otlp_endpoint))
            tracers = tracers_to(settings.otlp_endpoint, settings.otlp_sampling, resource)
            trace.set_tracer_provider(tracers)
            stack.callback(_within, _FAREWELL_SECONDS, tracers.shutdown)
        meters = Meters(readers, resource)
        metrics.set_meter_provider(meters)
        stack.callback(_within, _FAREWELL_SECONDS, meters.shutdown)
        yield


def resource_of(service: str) -> Resource:
    """Returns what says of a span or a figure which process it comes from."""
    return Resource.create(
        {
            "service.name": service,
            "service.namespace": _NAMESPACE,
            "service.version": version(_NAMESPACE),
            "service.instance.id": str(uuid4()),
        }
    )


def tracers_to(endpoint: str, ratio: float, resource: Resource) -> TracerProvider:
    """Returns what makes spans and sends them to `endpoint` (host:port, OTLP over gRPC).

    A trace that begins here is sampled at `ratio`; one that began elsewhere as was decided there.
    """
    tracers = TracerProvider(
        ParentBased(TraceIdRatioBased(ratio)),
        resource,
        shutdown_on_exit=False,
        span_limits=SpanLimits(max_attribute_length=_MOST_ATTRIBUTE),
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=_EXPORT_SECONDS)
    tracers.add_span_processor(
        BatchSpanProcessor(
            exporter,
            max_queue_size=_MOST_SPANS,
            schedule_delay_millis=_SPANS_DELAY_MILLIS,
            max_export_batch_size=_MOST_SPANS_AT_ONCE,
        )
    )
    return tracers


def _metrics_to(endpoint: str) -> MetricReader:
    return PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=endpoint, insecure=True, timeout=_EXPORT_SECONDS),
        export_interval_millis=_METRICS_INTERVAL_MILLIS,
        export_timeout_millis=_EXPORT_SECONDS * 1_000,
    )


def _within(seconds: float, shutdown: Callable[[], None]) -> None:
    """Calls `shutdown`, and goes on without it when it takes longer."""
    # A daemon: whatever it waits for does not keep the process.
    farewell = Thread(target=shutdown, daemon=True)
    farewell.start()
    farewell.join(seconds)
