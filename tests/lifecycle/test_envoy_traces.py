"""What the front door tells about requests, and whose word it takes for what is kept."""

import contextlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from deploy.envoy.settings import Address
from deploy.local.envoy import front_door
from deploy.local.pki import Paths, certificates
from deploy.local.traces import Receiver, Span, otlp_receiver
from tests.lifecycle.envoy_doubles import (
    SERVICES,
    Door,
    DoorKeeper,
    Recorded,
    RecordingService,
    door_of,
    grpc_server,
    http_server,
    settings_of,
)

GOOD = {"authorization": "Bearer good", "host": "shop.localhost"}
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
# W3C Trace Context: a parent whose sampled flag is set.
FORCED = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01", "x-client-trace-id": "forced"}


@dataclass(frozen=True, slots=True)
class Traced:
    """A front door, and what it tells."""

    door: Door
    receiver: Receiver

    async def asked(self, path: str, **headers: str) -> str:
        """Returns the `traceparent` with which the request arrived behind the door."""
        async with self.door.client() as client:
            assert (await client.get(path, headers=GOOD | headers)).status_code == 200
        return self.door.recorded.requests[-1]["traceparent"]

    async def spans(self, traceparent: str) -> list[Span]:
        """Returns the spans of the request, once there are two: its own, and the check's."""
        trace_id = traceparent.split("-")[1]
        return await self.receiver.traces.wait_for(trace_id, lambda found: len(found) >= 2, 30)


@pytest.fixture(scope="module")
def mesh_pki(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Paths]:
    return certificates(tmp_path_factory.mktemp("pki"), (*SERVICES, "edge"))


@asynccontextmanager
async def traced(
    pki: Mapping[str, Paths], home: Path, *, sampling: float, trusts: bool = False
) -> AsyncIterator[Traced]:
    recorded = Recorded()
    async with contextlib.AsyncExitStack() as stack:
        receiver = await stack.enter_async_context(otlp_receiver())
        host, _, port = receiver.endpoint.rpartition(":")
        settings = replace(
            settings_of(pki, home),
            otlp=Address(host, int(port)),
            sampling=sampling,
            trusts_traces=trusts,
        )
        paths = pki["app_proxy"]
        handler = RecordingService("app_proxy", recorded)
        grpc_port = settings.services["app_proxy"].port
        keeper = DoorKeeper(recorded)
        await stack.enter_async_context(grpc_server(paths, grpc_port, handler, keeper))
        http_port = settings.app_proxy_http.port
        await stack.enter_async_context(http_server(paths, http_port, recorded))
        await stack.enter_async_context(front_door(home, settings))
        yield Traced(door_of(settings, recorded), receiver)


async def test_a_request_cannot_choose_its_trace_nor_that_it_is_kept(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    async with traced(mesh_pki, tmp_path, sampling=0) as running:
        _, trace_id, _, flags = (await running.asked("/mcp", **FORCED)).split("-")
        assert trace_id != TRACE
        assert flags == "00"
        assert "baggage" not in running.door.recorded.requests[-1]
        assert running.receiver.traces.spans(trace_id) == []


async def test_a_trusted_request_names_its_trace_and_no_more(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    async with traced(mesh_pki, tmp_path, sampling=0, trusts=True) as running:
        traceparent = await running.asked("/mcp", **FORCED)
        assert traceparent.split("-")[1::2] == [TRACE, "00"]
        assert running.receiver.traces.spans(TRACE) == []


async def test_spans_of_the_door_hold_neither_key_nor_query(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    async with traced(mesh_pki, tmp_path, sampling=1) as running:
        traceparent = await running.asked("/mcp?code=hidden&state=hidden", cookie="session=hidden")
        spans = await running.spans(traceparent)
    (first,) = [span for span in spans if not span.parent_id]
    assert first.name == "deployment"
    assert first.attributes["http.url"] == "http://shop.localhost/mcp"
    told = str(spans)
    assert "hidden" not in told
    assert "good" not in told


async def test_the_span_of_a_request_that_the_check_cannot_decide_is_an_error(
    mesh_pki: Mapping[str, Paths], tmp_path: Path
) -> None:
    async with otlp_receiver() as receiver:
        host, _, port = receiver.endpoint.rpartition(":")
        settings = replace(settings_of(mesh_pki, tmp_path), otlp=Address(host, int(port)))
        settings = replace(settings, trusts_traces=True)
        door = door_of(settings, Recorded())
        async with front_door(tmp_path, settings), door.client() as client:
            assert (await client.get("/mcp", headers=GOOD | FORCED)).status_code == 503
            spans = await Traced(door, receiver).spans(FORCED["traceparent"])
    assert all(span.failed for span in spans)
