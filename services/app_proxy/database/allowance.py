"""What one result may still cost the process that all deployments share (P-38)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class TooMuchError(Exception):
    """A value is left out: the statement's allowance is used up. Why is its text."""


class Allowance:
    """How many values of one statement are decoded, and for how long the event loop is held."""

    def __init__(self) -> None:
        self._values: float = float("inf")
        self._seconds: float = float("inf")
        self.used_seconds = 0.0
        self._rested = 0.0

    def allow(self, values: float, seconds: float) -> None:
        """Begins anew: so many values, so many seconds of the processor."""
        self._values, self._seconds = values, seconds
        self.used_seconds = self._rested = 0.0

    def lift(self) -> None:
        """Allows everything, for statements of our own."""
        self.allow(float("inf"), float("inf"))

    @property
    def out_of_time(self) -> bool:
        """Whether the seconds are used up."""
        return self.used_seconds >= self._seconds

    def owed_seconds(self) -> float:
        """Returns the seconds used since this was asked last."""
        owed, self._rested = self.used_seconds - self._rested, self.used_seconds
        return owed

    def take(self) -> bool:
        """Takes one value; returns False when there is none left to take."""
        self._values -= 1
        return self._values >= 0

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Charges what the block costs the processor, which nothing else gets meanwhile."""
        began = time.thread_time()
        try:
            yield
        finally:
            self.used_seconds += time.thread_time() - began
            if self.out_of_time:
                self._values = 0
