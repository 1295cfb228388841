"""Many concurrent calls, one batch: callers wait a moment together instead of each by itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

from opentelemetry import context as otel_context

from services.shared.passing import is_kept

Item = TypeVar("Item")
Result = TypeVar("Result")


class Coalescer(Generic[Item, Result]):
    """Gathers single calls into batches.

    A batch leaves at once while fewer than `flights` are under way; what comes meanwhile waits for
    the next. So an idle process adds no delay, and a busy one sends few, large batches. A batch
    weighs `most` at most, unless one item alone does.
    """

    def __init__(
        self,
        call_batch: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        most: int = 256,
        flights: int = 2,
        weigh: Callable[[Item], int] = lambda _: 1,
    ) -> None:
        self._call_batch = call_batch
        self._most = most
        self._flights = flights
        self._weigh = weigh
        self._items: list[Item] = []
        self._futures: list[asyncio.Future[Result]] = []
        self._trace = otel_context.Context()
        self._under_way: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def __call__(self, item: Item) -> Result:
        """Returns the batch call's result for `item`; raises what the batch call raised."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._lend(otel_context.get_current())
        self._items.append(item)
        self._futures.append(future)
        if not self._scheduled and len(self._under_way) < self._flights:
            self._scheduled = True
            # The next turn of the loop: everyone who is ready now gets aboard.
            loop.call_soon(self._depart)
        return await future

    def _lend(self, own: otel_context.Context) -> None:
        """Gives the batch the trace of its first caller, or of the first whose trace is kept."""
        if not self._items or (own and is_kept(own) and not is_kept(self._trace)):
            self._trace = own

    def _depart(self) -> None:
        self._scheduled = False
        while self._items and len(self._under_way) < self._flights:
            aboard = self._aboard()
            items, self._items = self._items[:aboard], self._items[aboard:]
            futures, self._futures = self._futures[:aboard], self._futures[aboard:]
            # A fresh context: a batch belongs to no single caller, so it carries no one's key.
            flight = self._fly(items, futures, self._trace)
            # Those who wait for the next batch lent it none.
            self._trace = otel_context.Context()
            task = Context().run(asyncio.get_running_loop().create_task, flight)
            self._under_way.add(task)
            task.add_done_callback(self._landed)

    def _aboard(self) -> int:
        """Returns how many of those who wait go with the next batch: at least one."""
        weight = 0
        for number, item in enumerate(self._items):
            weight += self._weigh(item)
            if number and weight > self._most:
                return number
        return len(self._items)

    def _landed(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        self._depart()

    async def _fly(
        self,
        items: list[Item],
        futures: list[asyncio.Future[Result]],
        trace: otel_context.Context,
    ) -> None:
        otel_context.attach(trace)
        try:
            results = await self._call_batch(items)
            for future, result in zip(futures, results, strict=True):
                if not future.done():
                    future.set_result(result)
        except BaseException as error:
            for future in futures:
                if not future.done():
                    future.set_exception(error)
            if not isinstance(error, Exception):
                raise
