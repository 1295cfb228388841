"""Work that runs beside what is served, and ends with it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

# How long work may take to end before it is told again.
_AGAIN_SECONDS = 2.0


@asynccontextmanager
async def background(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs `works` until the block is left; then they are cancelled, and have ended.

    A cancellation may get lost, when a driver takes it for a time-out of its own and goes on: so it
    is repeated until the work has ended. What a work failed with is raised at the end.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        yield
    finally:
        while running := [task for task in tasks if not task.done()]:
            for task in running:
                task.cancel()
            await asyncio.wait(running, timeout=_AGAIN_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.result()
