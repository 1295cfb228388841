"""What spans and durations of calls say: of those that went well, and of each way to fail."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from bulkhead.common.v1.access_pb2 import Access
from google.rpc import status_pb2
from grpc_status import rpc_status
from opentelemetry import trace
from opentelemetry.context import attach, detach
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import SpanKind, StatusCode

from deploy.local.waiting import until
from services.shared.coalesce import Coalescer
from services.shared.errors import NotFoundError, UnavailableError
from services.shared.interceptors.chain import Chain
from services.shared.interceptors.client import client_interceptors
from services.shared.interceptors.errors import errors
from services.shared.interceptors.load import LoadLimit
from services.shared.interceptors.telemetry import Telemetry
from services.shared.metering import Meters
from services.shared.passing import is_kept
from services.shared.passing import trace_id as current_trace_id
from services.shared.recording import SCOPE, UNRECORDED, Recording, incoming, outgoing

SERVICE = "bulkhead.test.v1.TestService"
PATIENCE_SECONDS = 30.0
SECRET = "hunter2-of-the-tenant"
Handler = Callable[[grpc.aio.ServicerContext[Any, Any]], Awaitable[None]]


@dataclass
class Recorded:
    """A recording, and what is in it."""

    ratio: float = 1.0
    spans: InMemorySpanExporter = field(default_factory=InMemorySpanExporter)
    reader: InMemoryMetricReader = field(default_factory=InMemoryMetricReader)
    recording: Recording = field(init=False)

    def __post_init__(self) -> None:
        tracers = TracerProvider(ParentBased(TraceIdRatioBased(self.ratio)))
        tracers.add_span_processor(SimpleSpanProcessor(self.spans))
        self.recording = Recording(tracers, Meters([self.reader]))

    async def of(self, kind: SpanKind) -> ReadableSpan:
        """Returns the one span of a kind, once it has ended."""

        async def ended() -> bool:
            return any(span.kind is kind for span in self.spans.get_finished_spans())

        await until(ended, PATIENCE_SECONDS)
        (found,) = [span for span in self.spans.get_finished_spans() if span.kind is kind]
        return found

    def points(self, name: str) -> list[Any]:
        """Returns what was measured under a name."""
        measured = self.reader.get_metrics_data()
        return [
            point
            for resource in (measured.resource_metrics if measured else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


async def well(_context: Any) -> None:
    """Returns at once."""


async def nothing_there(_context: Any) -> None:
    raise NotFoundError("deployment")


async def away(_context: Any) -> None:
    raise UnavailableError("the store is away")


async def broken(_context: Any) -> None:
    raise ValueError(f"password={SECRET}")


async def aborted(context: Any) -> None:
    status = status_pb2.Status(code=grpc.StatusCode.FAILED_PRECONDITION.value[0], message=SECRET)
    await context.abort_with_status(rpc_status.to_status(status))


async def endless(_context: Any) -> None:
    await asyncio.Event().wait()


HANDLERS: dict[str, Handler] = {
    each.__name__: each for each in (well, nothing_there, away, broken, aborted, endless)
}


@asynccontextmanager
async def served(recorded: Recorded) -> AsyncIterator[grpc.aio.Channel]:
    """Yields a channel to a server of `HANDLERS`; both record."""
    chain = Chain(
        {f"{SERVICE}/{name}": Access() for name in HANDLERS},
        [Telemetry(recorded.recording), errors, LoadLimit(100, recorded.recording)],
    )
    server = grpc.aio.server(interceptors=[chain], options=[("grpc.so_reuseport", 0)])
    methods = {name: _method(handler) for name, handler in HANDLERS.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, methods)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    interceptors = client_interceptors("test", recorded.recording)
    try:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", interceptors=interceptors
        ) as channel:
            yield channel
    finally:
        await server.stop(None)
        await chain.idle()


def _method(handler: Handler) -> Any:
    async def answer(_request: bytes, context: Any) -> bytes:
        await handler(context)
        return b""

    return grpc.unary_unary_rpc_method_handler(answer, bytes, bytes)


async def called(
    recorded: Recorded, channel: grpc.aio.Channel, name: str, seconds: float | None = None
) -> grpc.StatusCode:
    """Returns the code of a call that is made inside of a span."""
    assert recorded.recording.tracers is not None
    method: Any = channel.unary_unary(f"/{SERVICE}/{name}")
    with recorded.recording.tracers.get_tracer(SCOPE).start_as_current_span("caller"):
        try:
            await method(b"", timeout=seconds or PATIENCE_SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("name", "code", "reason", "servers_fault"),
    [
        ("well", grpc.StatusCode.OK, None, False),
        ("nothing_there", grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND", False),
        ("away", grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", True),
        ("broken", grpc.StatusCode.INTERNAL, "INTERNAL", True),
        ("aborted", grpc.StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION", False),
        ("endless", grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", True),
    ],
)
async def test_each_end_of_a_call_is_told_by_both_spans(
    name: str, code: grpc.StatusCode, reason: str | None, servers_fault: bool
) -> None:
    recorded = Recorded()
    async with served(recorded) as channel:
        seconds = 0.3 if name == "endless" else None
        assert await called(recorded, channel, name, seconds) is code
        server, client = await recorded.of(SpanKind.SERVER), await recorded.of(SpanKind.CLIENT)
    assert server.context is not None
    assert client.context is not None
    assert server.parent is not None
    assert (server.context.trace_id, server.parent.span_id) == (
        client.context.trace_id,
        client.context.span_id,
    )
    for span, failed in ((server, servers_fault), (client, code is not grpc.StatusCode.OK)):
        assert span.attributes is not None
        assert span.attributes["rpc.response.status_code"] == code.name
        assert span.attributes.get("error.type") == reason
        assert span.status.status_code is (StatusCode.ERROR if failed else StatusCode.UNSET)
        assert span.name == f"{SERVICE}/{name}"
    told = "".join(span.to_json() for span in recorded.spans.get_finished_spans())
    assert SECRET not in told
    for figure in ("rpc.server.call.duration", "rpc.client.call.duration"):
        (point,) = recorded.points(figure)
        assert point.count == 1
        assert set(point.attributes) <= {
            *("rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type"),
        }
        assert point.attributes["rpc.response.status_code"] == code.name


async def test_the_spans_of_a_cancelled_call_end() -> None:
    recorded = Recorded()
    async with served(recorded) as channel:
        calling = asyncio.create_task(called(recorded, channel, "endless"))

        async def under_way() -> bool:
            return [
                point.value for point in recorded.points("bulkhead.rpc.server.active_calls")
            ] == [1]

        await until(under_way, PATIENCE_SECONDS)
        calling.cancel()
        server, client = await recorded.of(SpanKind.SERVER), await recorded.of(SpanKind.CLIENT)
        for span in (server, client):
            assert span.attributes is not None
            assert span.attributes["rpc.response.status_code"] == "CANCELLED"
        assert server.status.status_code is StatusCode.UNSET
        assert client.status.status_code is StatusCode.ERROR
    for side in ("server", "client"):
        (point,) = recorded.points(f"bulkhead.rpc.{side}.active_calls")
        assert point.value == 0


async def test_a_trace_that_is_not_kept_is_passed_on_without_a_span() -> None:
    recorded = Recorded(ratio=0.0)
    async with served(recorded) as channel:
        assert await called(recorded, channel, "well") is grpc.StatusCode.OK
    assert recorded.spans.get_finished_spans() == ()
    (point,) = recorded.points("rpc.server.call.duration")
    assert point.count == 1


async def test_a_batch_is_part_of_the_first_trace_that_is_kept() -> None:
    seen: list[str] = []

    async def note(items: Sequence[int]) -> list[int]:
        seen.append(outgoing().get("traceparent", ""))
        return list(items)

    async def asking(flags: str) -> int:
        parent = incoming({"traceparent": f"00-{secrets.token_hex(16)}-{'1' * 16}-{flags}"})
        assert parent is not None
        token = attach(parent)
        try:
            return await ask(1)
        finally:
            detach(token)

    ask: Coalescer[int, int] = Coalescer(note)
    await asyncio.gather(*(asking(flags) for flags in ("00", "01", "01")))
    assert [each[-2:] for each in seen] == ["01"]


@pytest.mark.parametrize(
    ("carrier", "usable"),
    [
        ({}, False),
        ({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}, True),
        ({"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"}, False),
        ({"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-00"}, False),
        ({"traceparent": "00-0af7651916cd43dd8448eb211c80319c-" + "0" * 16 + "-00"}, False),
        ({"traceparent": "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00-x"}, True),
        ({"traceparent": "of no use"}, False),
        ({"baggage": "user=mallory"}, False),
    ],
    ids=[
        *("nothing", "a trace", "zeros", "no trace id", "no span id", "of later days"),
        *("no trace", "baggage"),
    ],
)
def test_a_trace_is_taken_from_what_w3c_says_alone(carrier: dict[str, str], usable: bool) -> None:
    assert (incoming(carrier) is not None) == usable


@pytest.mark.parametrize("flags", ["00", "01"])
@pytest.mark.parametrize("state", ["", "vendor=1"], ids=["alone", "with state"])
def test_a_trace_is_passed_on_as_it_came(flags: str, state: str) -> None:
    trace_id = secrets.token_hex(16)
    sent = {"traceparent": f"00-{trace_id}-00000000000000aa-{flags}"}
    if state:
        sent["tracestate"] = state
    context = incoming(sent)
    assert context is not None
    ids = trace.get_current_span(context).get_span_context()
    assert (ids.trace_id, ids.span_id) == (int(trace_id, 16), 0xAA)
    assert ids.is_valid
    assert ids.is_remote
    assert ids.trace_flags.sampled == is_kept(context) == (flags == "01")
    token = attach(context)
    try:
        assert outgoing() == sent
        assert current_trace_id() == trace_id
    finally:
        detach(token)


def test_where_nothing_is_recorded_there_is_nothing_to_call() -> None:
    assert UNRECORDED.tracer() is None
    assert UNRECORDED.meter() is None
    assert outgoing() == {}
    assert current_trace_id() == ""
    assert not is_kept()
