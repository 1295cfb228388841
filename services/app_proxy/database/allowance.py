"""What one result may still cost the process that all deployments share (P-38)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class TooMuchError(Exception):
    """A value has no room in the result; why is the text."""


class Allowance:
    """For how long one statement's result may hold the event loop."""

    def __init__(self) -> None:
        self._seconds = float("inf")
        self._used = self._rested = 0.0

    def allow(self, seconds: float | None) -> None:
        """Begins anew, with so many seconds of the processor; None: no limit."""
        self._seconds = float("inf") if seconds is None else seconds
        self._used = self._rested = 0.0

    @property
    def out_of_time(self) -> bool:
        """Whether the seconds are used up."""
        return self._used >= self._seconds

    def owed_seconds(self) -> float:
        """Returns the seconds used since this was asked last."""
        owed, self._rested = self._used - self._rested, self._used
        return owed

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Charges what the block costs the processor, which nothing else gets meanwhile."""
        began = time.thread_time()
        try:
            yield
        finally:
            self._used += time.thread_time() - began
