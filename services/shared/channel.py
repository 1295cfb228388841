"""Channels to other services: mTLS, balanced, retried, with a deadline and the caller's key."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc.aio import ClientCallDetails, Metadata
from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.shared.deadline import time_remaining
from services.shared.errors import DeadlineTooShortError, UnauthenticatedError
from services.shared.principal import current_caller
from services.shared.settings import ServiceSettings
from services.shared.tls import channel_credentials, identity_of

_DEFAULT_SECONDS = 5.0
# A callee gets a little less than its caller has left, so that the answer can still be used.
_TRIM_SECONDS = 0.02

_RETRIED = {
    "name": [{}],
    "retryPolicy": {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "0.5s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    },
}


@asynccontextmanager
async def open_channel(
    settings: ServiceSettings, service: str, target: str, *, once: Sequence[str] = ()
) -> AsyncIterator[grpc.aio.Channel]:
    """Yields a channel to `service` at `target`; it connects when it is first used.

    The other end must present the certificate of `service`. UNAVAILABLE is retried, so every
    method reached over it has to be safe to repeat, but those that `once` names
    (`package.Service/Method`): they are called once.
    """
    options = [
        # Names the expected service whatever address it is reached by.
        ("grpc.ssl_target_name_override", service),
        ("grpc.service_config", _service_config(once)),
        ("grpc.initial_reconnect_backoff_ms", 50),
        ("grpc.min_reconnect_backoff_ms", 50),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    async with grpc.aio.secure_channel(
        target,
        channel_credentials(identity_of(settings)),
        options=options,
        interceptors=[_UnaryCalls(), _StreamCalls()],
    ) as channel:
        yield channel


def _service_config(once: Sequence[str]) -> str:
    names = [method.partition("/") for method in once]
    own = [{"service": service, "method": method} for service, _, method in names]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            # The entry that names a method goes before the one that names all.
            "methodConfig": [*([{"name": own}] if own else []), _RETRIED],
        }
    )


class _UnaryCalls(grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        method = _method_name(client_call_details)
        with trace.get_tracer("bulkhead").start_as_current_span(
            method,
            kind=SpanKind.CLIENT,
            attributes={"rpc.system.name": "grpc", "rpc.method": method},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            timeout = _timeout(client_call_details.timeout)
            call = await continuation(_completed(client_call_details, timeout), request)
            code = await call.code()
            span.set_attribute("rpc.response.status_code", code.name)
            if code is not grpc.StatusCode.OK:
                span.set_status(Status(StatusCode.ERROR))
            return call


class _StreamCalls(grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self,
        continuation: Callable[[ClientCallDetails, Any], Any],
        client_call_details: ClientCallDetails,
        request: Any,
    ) -> Any:
        # A stream lives as long as its reader: it has a deadline only when the reader sets one.
        details = _completed(client_call_details, client_call_details.timeout)
        return await continuation(details, request)


def _timeout(asked: float | None) -> float:
    remaining = time_remaining()
    seconds = _DEFAULT_SECONDS if asked is None else asked
    if remaining is None:
        return seconds
    if remaining <= _TRIM_SECONDS:
        raise DeadlineTooShortError
    return min(seconds, remaining - _TRIM_SECONDS)


def _completed(details: ClientCallDetails, timeout: float | None) -> ClientCallDetails:
    metadata = Metadata(*(details.metadata or ()))
    if metadata.get("authorization") is None and (bearer := _bearer()) is not None:
        metadata.add("authorization", f"Bearer {bearer}")
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    for name, value in carrier.items():
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
