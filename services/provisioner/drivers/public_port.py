"""The public port of one database, and who is there by it."""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import structlog

from services.provisioner.drivers.caller import Caller
from services.provisioner.drivers.desk import Desk
from services.provisioner.drivers.postgres_wire import CancelRequest, SqlState, Startup, refusal
from services.provisioner.drivers.reception import ARRIVALS, Reception, why_not
from services.shared.errors import BulkheadError
from services.shared.ids import DeploymentId

# More than a server itself takes, so that it is the server who says that it is full.
_MOST_PROVEN = 40
# Each makes the server start a process.
_MOST_CANCELLING = 8
_FULL = refusal(
    SqlState.TOO_MANY_CONNECTIONS, "too many connections", "close some, or share them in a pool"
)
_FAILURES = (BulkheadError, OSError, TimeoutError)


class PublicPort:
    """Takes callers in, and brings each to the deployment's server."""

    def __init__(
        self, reception: Reception, deployment: DeploymentId, bound: socket.socket
    ) -> None:
        self._reception = reception
        self._deployment = deployment
        self._bound = bound
        self._server: asyncio.Server | None = None
        # All who are here; those for whom the server is sought; and those whom it knows.
        self._callers: set[Caller] = set()
        self._brought: set[Caller] = set()
        self._proven: set[Caller] = set()
        self._cancelling = 0
        self._desk = Desk(reception.line)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def number(self) -> int:
        """The port."""
        return int(self._bound.getsockname()[1])

    async def start(self) -> None:
        """Begins to listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Caller(self), sock=self._bound, backlog=ARRIVALS
        )

    async def stop(self) -> None:
        """Cuts everybody off; the port is free when this returns."""
        if self._server is not None:
            self._server.close()
        self._desk.dismiss()
        for caller in list(self._callers):
            caller.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def entered(self, caller: Caller) -> None:
        """Takes it in; see `caller.Host` for all of these."""
        self._callers.add(caller)
        pushed_out = self._reception.nameless.enter(self, caller)
        if pushed_out is not None:
            pushed_out.abort()

    def left(self, caller: Caller) -> None:
        """Forgets it."""
        self._callers.discard(caller)
        self._reception.nameless.leave(self, caller)
        if caller in self._proven:
            self._proven.discard(caller)
            self._reception.leave()
        # Else its turn is over when the server is found.
        elif caller not in self._brought:
            self._desk.leave(caller)

    def named(self, caller: Caller, startup: Startup) -> None:
        """Brings it to the server, if that would let it in."""
        self._reception.nameless.leave(self, caller)
        refused = self._reception.refusal(startup)
        if refused is not None:
            caller.refuse(refused)
        elif self._has_room:
            self._desk.come(caller, lambda: self._serve(caller, startup))
        else:
            caller.refuse(_FULL)

    def asked(self, caller: Caller) -> None:
        """Gives it a while to answer."""
        self._desk.asked(caller)

    def proven(self, caller: Caller) -> None:
        """Counts it among those who are connected, if there is room."""
        if not self._desk.leave(caller):
            return
        if self._has_room:
            self._proven.add(caller)
            self._reception.enter()
        else:
            caller.refuse(_FULL)

    def cancelled(self, caller: Caller, request: CancelRequest) -> None:
        """Passes the request on, unless there are too many of them."""
        if self._cancelling < _MOST_CANCELLING:
            self._cancelling += 1
            self._begin(self._cancel(caller, request))
        else:
            caller.end()

    @property
    def _has_room(self) -> bool:
        proven = len(self._proven)
        return proven < _MOST_PROVEN and self._reception.has_room(proven)

    def _serve(self, caller: Caller, startup: Startup) -> None:
        self._brought.add(caller)
        self._begin(self._bring(caller, startup))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _bring(self, caller: Caller, startup: Startup) -> None:
        try:
            server = await self._reception.connected(self._deployment)
        except _FAILURES as error:
            self._log(error)
            caller.refuse(why_not(error))
        else:
            caller.join(startup, server)
        finally:
            self._brought.discard(caller)
            if caller not in self._callers:
                self._desk.leave(caller)

    async def _cancel(self, caller: Caller, request: CancelRequest) -> None:
        try:
            await self._reception.cancel(self._deployment, request)
        except _FAILURES as error:
            self._log(error)
        finally:
            self._cancelling -= 1
            caller.end()

    def _log(self, error: Exception) -> None:
        structlog.get_logger().info(
            "caller not let in", deployment_id=self._deployment, error=type(error).__name__
        )
