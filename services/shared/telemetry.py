"""OpenTelemetry: OTLP export when a receiver is named, otherwise off and free."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import metrics, trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.redis import RedisInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_EXPORT_DELAY_MILLIS = 200


@contextmanager
def exported(service: str, endpoint: str) -> Iterator[None]:
    """Exports this process's spans and metrics to `endpoint` (host:port, OTLP over gRPC).

    Without an endpoint nothing is recorded: the API's no-op tracer stays in place.
    """
    if not endpoint:
        yield
        return
    resource = Resource.create({"service.name": service})
    tracers = TracerProvider(resource=resource)
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True)
    tracers.add_span_processor(
        BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_DELAY_MILLIS)
    )
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=endpoint, insecure=True))
    meters = MeterProvider(resource=resource, metric_readers=[reader])
    trace.set_tracer_provider(tracers)
    metrics.set_meter_provider(meters)
    # Statements are recorded without their parameters, which are the tenant's.
    AsyncPGInstrumentor(capture_parameters=False).instrument()  # type: ignore[no-untyped-call]
    RedisInstrumentor().instrument()
    try:
        yield
    finally:
        tracers.shutdown()
        meters.shutdown()
