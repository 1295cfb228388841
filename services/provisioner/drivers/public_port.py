"""The public port of one database, and who is there by it."""

import asyncio
import socket
from collections.abc import Coroutine
from typing import Any

import structlog

from services.provisioner.drivers.caller import Caller
from services.provisioner.drivers.postgres_wire import CancelRequest, SqlState, Startup, refusal
from services.provisioner.drivers.reception import Reception, why_not
from services.shared.errors import BulkheadError
from services.shared.ids import DeploymentId

_BACKLOG = 128
# More than a server itself takes, so that it is the server who says that it is full.
_MOST_CALLERS = 40
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
        # Who is here, and whether it is known who that is.
        self._callers: dict[Caller, bool] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def number(self) -> int:
        """The port."""
        return int(self._bound.getsockname()[1])

    async def start(self) -> None:
        """Begins to listen."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Caller(self), sock=self._bound, backlog=_BACKLOG
        )

    async def stop(self) -> None:
        """Cuts everybody off; the port is free when this returns."""
        if self._server is not None:
            self._server.close()
        for caller in list(self._callers):
            caller.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def entered(self, caller: Caller) -> bool:
        """Returns whether there is room for it; see `caller.Host` for all of these."""
        if not self._reception.enter():
            return False
        self._callers[caller] = False
        return True

    def left(self, caller: Caller) -> None:
        """Forgets it."""
        named = self._callers.pop(caller, None)
        if named is not None:
            self._reception.leave(named=named)

    def named(self, caller: Caller, startup: Startup) -> None:
        """Brings it to the server, if that would let it in."""
        room = self._reception.name()
        self._callers[caller] = True
        refused = self._reception.refusal(startup)
        if refused is not None:
            caller.refuse(refused)
        elif room and sum(self._callers.values()) <= _MOST_CALLERS:
            self._begin(self._bring(caller, startup))
        else:
            caller.refuse(_FULL)

    def cancelled(self, caller: Caller, request: CancelRequest) -> None:
        """Passes the request on."""
        self._begin(self._cancel(caller, request))

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

    async def _cancel(self, caller: Caller, request: CancelRequest) -> None:
        try:
            await self._reception.cancel(self._deployment, request)
        except _FAILURES as error:
            self._log(error)
        finally:
            caller.end()

    def _log(self, error: Exception) -> None:
        structlog.get_logger().info(
            "caller not let in", deployment_id=self._deployment, error=type(error).__name__
        )
