"""The deadline of the call being served, so that calls made for it do not outlive it."""

import time
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("bulkhead_deadline", default=None)


def set_time_remaining(seconds: float | None) -> None:
    """Sets how long the call being served may still take; None: no limit."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)


def time_remaining() -> float | None:
    """Returns the seconds left of the call being served; None: no limit."""
    deadline = _deadline.get()
    return None if deadline is None else max(0.0, deadline - time.monotonic())
