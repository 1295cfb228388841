"""What surrounds each call to another service: deadline, the caller's key, span and duration."""

import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc.aio import ClientCallDetails, Metadata
from opentelemetry import trace

from services.shared.deadline import time_remaining
from services.shared.errors import DeadlineTooShortError, UnauthenticatedError
from services.shared.interceptors.telemetry import labels_of
from services.shared.principal import current_caller
from services.shared.recording import (
    CALL_BUCKETS,
    DurationsBy,
    Labels,
    Recording,
    fail,
    observing,
    outgoing,
)

_DEFAULT_SECONDS: Final = 5.0
# A callee gets a little less than its caller has left, so that the answer can still be used.
_TRIM_SECONDS: Final = 0.02
_DETAILS: Final = "grpc-status-details-bin"

Continuation = Callable[[ClientCallDetails, Any], Any]
T = TypeVar("T")


def client_interceptors(service: str, recording: Recording) -> Sequence[grpc.aio.ClientInterceptor]:
    """Returns the interceptors of all channels to `service` that one caller has."""
    return [UnaryCalls(service, recording), StreamCalls()]


class UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    """Calls that have one answer: a deadline of their own, and no more than their caller's."""

    def __init__(self, service: str, recording: Recording) -> None:
        self._tracer = recording.tracer()
        self._figures = _Figures(service, recording) if recording.meters is not None else None

    async def intercept_unary_unary(
        self,
        continuation: Continuation,
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        """Returns the call."""
        timeout = _timeout(client_call_details.timeout)
        span = self._span(client_call_details)
        details = _completed(client_call_details, timeout, span)
        if span is None and self._figures is None:
            return await continuation(details, request)
        return await self._recorded(span, continuation, details, request)

    def _span(self, details: ClientCallDetails) -> trace.Span | None:
        if self._tracer is None:
            return None
        method = _method_name(details)
        return self._tracer.step(method, {"rpc.system.name": "grpc", "rpc.method": method})

    async def _recorded(
        self,
        span: trace.Span | None,
        continuation: Continuation,
        details: ClientCallDetails,
        request: Any,
    ) -> Any:
        method, started = _method_name(details), time.perf_counter()

        def ended(code: grpc.StatusCode, reason: str) -> None:
            if self._figures is not None:
                self._figures.ended(method, code, time.perf_counter() - started)
            if span is not None:
                _end(span, code, reason)

        if self._figures is not None:
            self._figures.begun()
        try:
            call = await continuation(details, request)
        except BaseException:
            # It did not come to a call.
            ended(grpc.StatusCode.UNKNOWN, "")
            raise
        # To wait for its end here would be one more task to wake.
        call.add_done_callback(lambda call: ended(*_end_of(call)))
        return call


class StreamCalls(grpc.aio.UnaryStreamClientInterceptor):
    """Streams live as long as their readers: they have a deadline only when a reader sets one."""

    async def intercept_unary_stream(
        self,
        continuation: Continuation,
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        """Returns the call."""
        details = _completed(client_call_details, client_call_details.timeout, None)
        return await continuation(details, request)


class _Figures:
    """How long calls to one service take, and how many are under way."""

    def __init__(self, service: str, recording: Recording) -> None:
        meter = recording.meter(f"client.{service}")
        assert meter is not None  # noqa: S101 asked before
        self._peer = {"peer": service}
        self._under_way = 0
        histogram = meter.create_histogram(
            "rpc.client.call.duration",
            "s",
            "Time until calls to other services were answered.",
            explicit_bucket_boundaries_advisory=CALL_BUCKETS,
        )
        self._durations = DurationsBy(recording.durations(histogram), labels_of)
        meter.create_observable_up_down_counter(
            "bulkhead.rpc.client.active_calls",
            observing(self._read),
            "{call}",
            "Calls to other services that are under way.",
        )

    def begun(self) -> None:
        """Counts a call that begins."""
        self._under_way += 1

    def ended(self, method: str, code: grpc.StatusCode, seconds: float) -> None:
        """Counts a call that has ended."""
        self._under_way -= 1
        self._durations.record((method, code), seconds)

    def _read(self) -> Iterable[tuple[float, Labels]]:
        yield self._under_way, self._peer


def _end_of(call: Any) -> tuple[grpc.StatusCode, str]:
    """Returns an ended call's code, and why it was refused as the errors of the mesh say it."""
    code = _known(call.code())
    if code is grpc.StatusCode.OK:
        return code, ""
    trailing = Metadata(*(_known(call.trailing_metadata()) or ()))
    return code, _reason(trailing.get(_DETAILS))


def _known(answer: Coroutine[Any, Any, T]) -> T:
    """Returns what a coroutine returns that has nothing to wait for."""
    try:
        answer.send(None)
    except StopIteration as returned:
        value: T = returned.value
        return value
    raise RuntimeError("it has to wait")


def _reason(details: str | bytes | None) -> str:
    info = error_details_pb2.ErrorInfo()
    if isinstance(details, bytes):
        # What cannot be read says nothing.
        with suppress(DecodeError):
            for detail in status_pb2.Status.FromString(details).details:
                detail.Unpack(info)
    return str(info.reason)


def _end(span: trace.Span, code: grpc.StatusCode, reason: str) -> None:
    span.set_attribute("rpc.response.status_code", code.name)
    if code is not grpc.StatusCode.OK:
        fail(span, reason or code.name)
    span.end()


def _timeout(asked: float | None) -> float:
    remaining = time_remaining()
    seconds = _DEFAULT_SECONDS if asked is None else asked
    if remaining is None:
        return seconds
    if remaining <= _TRIM_SECONDS:
        raise DeadlineTooShortError
    return min(seconds, remaining - _TRIM_SECONDS)


def _completed(
    details: ClientCallDetails, timeout: float | None, span: trace.Span | None
) -> ClientCallDetails:
    metadata = Metadata(*(details.metadata or ()))
    if metadata.get("authorization") is None and (bearer := _bearer()) is not None:
        metadata.add("authorization", f"Bearer {bearer}")
    for name, value in outgoing(span).items():
        metadata.add(name, value)
    return ClientCallDetails(
        details.method, timeout, metadata, details.credentials, details.wait_for_ready
    )


def _bearer() -> str | None:
    try:
        return current_caller().bearer
    except UnauthenticatedError:
        return None


def _method_name(details: ClientCallDetails) -> str:
    method = details.method
    text = method.decode() if isinstance(method, bytes) else method
    return text.removeprefix("/")
