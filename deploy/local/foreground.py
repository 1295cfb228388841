"""Running a stack in this process until a signal ends it."""

import asyncio
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

from deploy.local.environment import override_name
from deploy.local.layout import SERVICES
from deploy.local.stack import Addresses, Stack
from deploy.local.supervisor import Progress


@contextmanager
def ended_by_signals(told: Callable[[], None] = lambda: None) -> Iterator[asyncio.Event]:
    """Lets SIGTERM, SIGINT or SIGHUP cancel this task; yields what is set when one came.

    Only the first does: nobody who asks twice, or asks a whole process group, interrupts the end.

    Args:
        told: called when it came.
    """
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 a coroutine runs in a task
    loop = asyncio.get_running_loop()
    ending = asyncio.Event()

    def end() -> None:
        if not ending.is_set():
            ending.set()
            told()
            task.cancel()

    # Whoever started us with `nohup` wants the terminal's end to be ignored.
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hangs_up else [])]
    for number in numbers:
        loop.add_signal_handler(number, end)
    try:
        yield ending
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


async def serve(stack: Stack, progress: Progress, ready: Callable[[Addresses], None]) -> None:
    """Runs `stack` until a signal ends it."""
    with ended_by_signals() as ending:
        try:
            async with stack.running(progress) as addresses:
                ready(addresses)
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not ending.is_set():
                raise


def parse_overrides(texts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Returns settings by service from texts like `ratelimit.BURST_FREE=5`.

    Relative paths begin in the folder of whoever asks.

    Raises:
        ValueError: a text has another form, or names no service or no setting of it.
    """
    overrides: dict[str, dict[str, str]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        service, dot, setting = name.partition(".")
        if not (equals and dot and setting) or service not in SERVICES:
            raise ValueError(f"{text}: not SERVICE.SETTING=VALUE with one of {', '.join(SERVICES)}")
        settings = _settings_of(service)
        if override_name(setting) not in settings:
            raise ValueError(f"{text}: {service} has no setting {setting}; see docs/operations.md")
        placed = _placed(settings[override_name(setting)], value)
        overrides.setdefault(service, {})[setting] = placed
    return overrides


def _settings_of(service: str) -> dict[str, Any]:
    """Returns the names of the service's settings, and the type of each."""
    fields = import_module(f"services.{service}.settings").Settings.model_fields
    return {override_name(name): field.annotation for name, field in fields.items()}


def _placed(kind: Any, value: str) -> str:
    """Returns the value of a setting of that type, with paths that do not depend on the folder."""
    if Path not in (kind, *get_args(kind)):
        return value
    # Several are separated by commas.
    paths = value.split(",") if get_origin(kind) is tuple else [value]
    return ",".join(_absolute(path.strip()) for path in paths if path.strip())


def _absolute(path: str) -> str:
    # Services run in a folder of their own; whoever types a path means it from where they are.
    return str(Path(path).expanduser().absolute())


def tell(text: str) -> None:
    """Says `text` on standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 the supervisor's own words
