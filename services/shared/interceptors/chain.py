"""The one grpc interceptor: it surrounds each handler with the context managers of this folder."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any, Final

import grpc
from bulkhead.common.v1.access_pb2 import Access
from google.protobuf.message import DecodeError

from services.shared.errors import UnavailableError
from services.shared.interceptors.call import Call, Interceptor

Handler = Callable[[Any, Any], Any]

_END: Final = object()


class Chain(grpc.aio.ServerInterceptor):
    """Applies the interceptors, outermost first, to every method that declares access.

    It also knows what is in flight: `server.stop` may return before an aborted handler's `finally`
    ran, so draining awaits these itself.
    """

    def __init__(self, access: Mapping[str, Access], interceptors: Sequence[Interceptor]) -> None:
        self._access = access
        self._interceptors = interceptors
        self._in_flight: set[asyncio.Task[Any]] = set()
        # Streams that wait for their next message; those that write one are not among them.
        self._resting: set[asyncio.Task[Any]] = set()
        self._draining = False

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Returns the method's handler, surrounded."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.removeprefix("/")
        access = self._access.get(method)
        # Without declared access only health and reflection are registered; see server.py.
        if handler is None or access is None:
            return handler
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, access, handler.unary_unary),
                _lenient(handler.request_deserializer),
                handler.response_serializer,
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, access, handler.unary_stream),
                _lenient(handler.request_deserializer),
                handler.response_serializer,
            )
        raise TypeError(f"{method}: requests that stream are not served here")

    def _unary(self, method: str, access: Access, handler: Handler) -> Handler:
        async def surrounded(request: Any, context: Any) -> Any:
            with _member(self._in_flight):
                call = _call(method, access, request, context)
                async with AsyncExitStack() as stack:
                    for interceptor in self._interceptors:
                        await stack.enter_async_context(interceptor(call))
                    return await handler(request, context)

        return surrounded

    def _stream(self, method: str, access: Access, handler: Handler) -> Handler:
        # It writes instead of yielding: so it ends inside its own task when the caller leaves,
        # not whenever a forgotten generator is collected.
        async def surrounded(request: Any, context: Any) -> None:
            with _member(self._in_flight):
                call = _call(method, access, request, context)
                async with AsyncExitStack() as stack:
                    for interceptor in self._interceptors:
                        await stack.enter_async_context(interceptor(call))
                    responses = await stack.enter_async_context(aclosing(handler(request, context)))
                    async for response in self._until_drain(responses):
                        await context.write(response)

        return surrounded

    async def _until_drain(self, responses: AsyncIterator[Any]) -> AsyncIterator[Any]:
        # Drained between messages only: grpc loses a call whose first write is cancelled, since it
        # then sends the initial metadata twice, and so never its status.
        while not self._draining:
            try:
                with _member(self._resting):
                    response = await anext(responses, _END)
            except asyncio.CancelledError:
                if self._draining:
                    break
                raise
            if response is _END:
                return
            yield response
        raise UnavailableError("this server is stopping; call again")

    def end_streams(self) -> None:
        """Ends every open stream with UNAVAILABLE; none would end by itself."""
        self._draining = True
        for task in self._resting:
            task.cancel()

    async def idle(self) -> None:
        """Returns when the last handler is through, its `finally` included."""
        while self._in_flight:
            await asyncio.wait(set(self._in_flight))


@contextmanager
def _member(tasks: set[asyncio.Task[Any]]) -> Iterator[None]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 handlers run in tasks
    tasks.add(task)
    try:
        yield
    finally:
        tasks.discard(task)


def _lenient(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Returns a deserializer that answers None to what is no request.

    What it raises grpc would tell the caller, who then learns of our insides and gets no reason.
    """

    def read_or_none(sent: bytes) -> Any:
        try:
            return read(sent)
        except DecodeError:
            return None

    return read_or_none


def _call(method: str, access: Access, request: Any, context: Any) -> Call:
    metadata = dict(context.invocation_metadata() or ())
    return Call(method, access, request, context, metadata=metadata)
