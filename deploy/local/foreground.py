"""Running a stack in this process until a signal ends it."""

import asyncio
import signal
import sys
from collections.abc import Callable, Sequence

from deploy.local.layout import SERVICES
from deploy.local.stack import Addresses, Stack
from deploy.local.supervisor import Progress


async def serve(stack: Stack, progress: Progress, ready: Callable[[Addresses], None]) -> None:
    """Runs `stack` until SIGTERM or SIGINT; a second signal changes nothing."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 a coroutine runs in a task
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            task.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        async with stack.running(progress) as addresses:
            ready(addresses)
            await asyncio.Event().wait()
    except asyncio.CancelledError:
        if not stopping.is_set():
            raise


def parse_overrides(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns settings by service from texts like `ratelimit.BURST_FREE=5`.

    Raises:
        ValueError: a text has another form, or names no service.
    """
    overrides: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        service, dot, setting = name.partition(".")
        if not (equals and dot and setting) or service not in SERVICES:
            raise ValueError(f"{text}: not SERVICE.SETTING=VALUE with one of {', '.join(SERVICES)}")
        overrides.setdefault(service, {})[setting] = value
    return overrides


def tell(text: str) -> None:
    """Says `text` on standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 the supervisor's own words
