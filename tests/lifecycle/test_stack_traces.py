"""Traces: received over OTLP, rendered as a tree, carried through the front door."""

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from deploy.local.traces import Span, Traces, otlp_receiver, render

TRACE = "0af7651916cd43dd8448eb211c80319c"
MS = 1_000_000


def span(own: str, parent: str, name: str, start: float, took: float, **more: object) -> Span:
    begin = int(start * MS)
    end = begin + int(took * MS)
    return Span(TRACE, own, parent, name, "edge" if not parent else "auth", begin, end, **more)  # type: ignore[arg-type]


def test_a_trace_is_a_tree_with_times() -> None:
    spans = [
        span("b2", "a1", "second", 40, 10, failed=True),
        span("a1", "", "POST", 1, 60),
        span("b1", "a1", "first", 2, 30),
        span("c1", "b1", "SELECT", 3, 20, attributes={"db.statement": "SELECT id\n  FROM keys"}),
    ]
    assert render(spans).splitlines() == [
        "edge  POST                       +     0.0      60.0 ms",
        "├─ auth  first                   +     1.0      30.0 ms",
        "│  └─ auth  SELECT id FROM keys  +     2.0      20.0 ms",
        "└─ auth  second                  +    39.0      10.0 ms  failed",
    ]


def test_a_span_whose_parent_is_missing_stands_at_the_top() -> None:
    text = render([span("b1", "lost", "orphan", 2, 1), span("c1", "b1", "child", 3, 1)])
    assert [line.split("  +")[0].rstrip() for line in text.splitlines()] == [
        "auth  orphan",
        "└─ auth  child",
    ]


def test_a_long_statement_is_cut() -> None:
    text = render([span("a1", "", "q", 0, 1, attributes={"db.query.text": "SELECT " + "x" * 200})])
    assert "x…  +" in text
    assert len(text) < 120


def test_nothing_is_rendered_as_nothing() -> None:
    assert render([]) == "no spans"


def export(count: int) -> trace_service_pb2.ExportTraceServiceRequest:
    request = trace_service_pb2.ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    name = resource.resource.attributes.add(key="service.name")
    name.value.string_value = "auth"
    spans = resource.scope_spans.add().spans
    for number in range(count):
        one = spans.add(trace_id=bytes.fromhex(TRACE), name=f"step {number}")
        one.span_id = number.to_bytes(8, "big")
        one.attributes.add(key="rpc.status_code").value.int_value = 7
    return request


async def test_spans_are_received_over_otlp() -> None:
    async with otlp_receiver() as receiver:
        async with grpc.aio.insecure_channel(receiver.endpoint) as channel:
            stub = trace_service_pb2_grpc.TraceServiceStub(channel)  # type: ignore[no-untyped-call]
            await stub.Export(export(2), timeout=10)
        spans = await receiver.traces.wait_for(TRACE, lambda found: len(found) == 2)
    assert [each.name for each in spans] == ["step 0", "step 1"]
    assert spans[0].service == "auth"
    assert spans[0].attributes == {"rpc.status_code": "7"}


async def test_only_so_many_spans_are_kept() -> None:
    traces = Traces(most=3)
    await traces.Export(export(5), None)
    assert [each.name for each in traces.spans(TRACE)] == ["step 2", "step 3", "step 4"]


async def test_waiting_for_spans_has_an_end() -> None:
    with pytest.raises(TimeoutError):
        await Traces().wait_for(TRACE, bool, seconds=0.05)
