"""Where the callers of one database prove who they are: some at a time, the others in line (P-38).

A server keeps a place for each of them from their first word on, and takes only so many. Whoever
names a login and then says nothing must not have those that belong to sessions.
"""

import asyncio
from collections.abc import Callable

from services.provisioner.drivers.caller import Caller
from services.provisioner.drivers.crowd import Crowd
from services.provisioner.drivers.postgres_wire import SqlState, refusal

# The server has room for twice as many: of one that is sent away it learns a moment later.
MOST_AT_ONCE = 8
# How long one may think about what the server asks while others wait; the server's own
# authentication_timeout is for when nobody does.
_PATIENCE_SECONDS = 1.0
# When more wait than the server could have as sessions, not all of them mean it.
_MOST_HONEST = 36 - MOST_AT_ONCE
_LITTLE_PATIENCE_SECONDS = 0.1
_BUSY = refusal(
    SqlState.TOO_MANY_CONNECTIONS,
    "too many clients are proving who they are",
    "try again in a moment",
)

Line = Crowd["Desk", Caller]


class Desk:
    """Serves the newest first: under a flood of those who say nothing, it need not wait for them.

    Args:
        line: who waits at all the desks of this process.
    """

    def __init__(self, line: Line) -> None:
        self._line = line
        self._waiting: dict[Caller, Callable[[], None]] = {}
        # Each with the timer of what the server has asked it.
        self._served: dict[Caller, asyncio.TimerHandle | None] = {}
        # Since when each has let the server wait, of those that do for longer than a little.
        self._late: dict[Caller, float] = {}

    def come(self, caller: Caller, serve: Callable[[], None]) -> None:
        """Calls `serve` when it is the caller's turn, which is over when it leaves."""
        self._waiting[caller] = serve
        pushed_out = self._line.enter(self, caller)
        if pushed_out is not None:
            pushed_out.refuse(_BUSY)
        self._go_on()

    def asked(self, caller: Caller) -> None:
        """Learns that the server waits for the caller."""
        if caller in self._served:
            self._stop_timer(caller)
            loop = asyncio.get_running_loop()
            self._served[caller] = loop.call_later(
                _LITTLE_PATIENCE_SECONDS, self._grow_late, caller, loop.time()
            )

    def leave(self, caller: Caller) -> bool:
        """Returns whether it was the caller's turn, which is over now."""
        self._line.leave(self, caller)
        self._waiting.pop(caller, None)
        served = self._forget(caller)
        self._go_on()
        return served

    def dismiss(self) -> None:
        """Serves nobody of the line any more."""
        for caller in self._waiting:
            self._line.leave(self, caller)
        self._waiting.clear()

    def _go_on(self) -> None:
        while self._waiting and (len(self._served) < MOST_AT_ONCE or self._send_one_away()):
            caller, serve = self._waiting.popitem()
            self._line.leave(self, caller)
            self._served[caller] = None
            serve()

    def _send_one_away(self) -> bool:
        """Returns whether there was one that lets others wait for too long."""
        late = next(iter(self._late), None)
        if late is None:
            return False
        asked = asyncio.get_running_loop().time() - self._late[late]
        if len(self._waiting) <= _MOST_HONEST and asked < _PATIENCE_SECONDS:
            return False
        self._forget(late)
        late.refuse(_BUSY)
        return True

    def _grow_late(self, caller: Caller, asked: float) -> None:
        self._late[caller] = asked
        loop = asyncio.get_running_loop()
        # A little later, for a timer may be early by what its clock does not tell.
        self._served[caller] = loop.call_at(asked + _PATIENCE_SECONDS + 0.01, self._go_on)
        self._go_on()

    def _forget(self, caller: Caller) -> bool:
        if caller not in self._served:
            return False
        self._stop_timer(caller)
        del self._served[caller]
        return True

    def _stop_timer(self, caller: Caller) -> None:
        self._late.pop(caller, None)
        timer = self._served[caller]
        if timer is not None:
            timer.cancel()
