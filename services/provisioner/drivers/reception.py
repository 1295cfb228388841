"""Who may come in at the public ports, how many of them, and where they go."""

import asyncio
from collections.abc import Container, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from services.provisioner.domain import DatabaseAddress
from services.provisioner.drivers.caller import Caller
from services.provisioner.drivers.crowd import Crowd
from services.provisioner.drivers.desk import Line
from services.provisioner.drivers.postgres_wire import CancelRequest, SqlState, Startup, refusal
from services.provisioner.drivers.relay import ServerEnd
from services.shared.errors import BulkheadError, Reason, UnavailableError
from services.shared.ids import DeploymentId

# Of those who have not said yet who they are: at one port as many as come in at one stroke, so
# that each is heard before it gives way.
ARRIVALS = 128
_MOST_NAMELESS = 512
# Of those who have, and wait for their turn to prove it; the server takes fewer sessions.
_MOST_IN_LINE = 40
_MOST_IN_LINES = 512
_WAKE_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
# A server can go to sleep between the moment it is found awake and the moment it is reached.
_TRIES = 3
_LATER = "try again in a moment"


class Waker(Protocol):
    """Knows where the servers are."""

    async def wake(self, deployment: DeploymentId) -> DatabaseAddress:
        """Returns where the server is, awake.

        Raises:
            BulkheadError: it is not to be reached now, and why.
        """
        ...

    async def awake(self, deployment: DeploymentId) -> DatabaseAddress | None:
        """Returns where the server is if it is awake."""
        ...


@dataclass(frozen=True, slots=True)
class House:
    """What can be asked for at every port, and by how many at once at all of them."""

    database: str
    logins: Container[str]
    most_callers: int


class Reception:
    """What all public ports of a process share."""

    def __init__(self, waker: Waker, house: House) -> None:
        self._waker = waker
        self._house = house
        # By their ports.
        self.nameless: Crowd[Hashable, Caller] = Crowd(ARRIVALS, _MOST_NAMELESS)
        self.line: Line = Crowd(_MOST_IN_LINE, _MOST_IN_LINES)
        self._proven = 0

    def has_room(self, proven: int) -> bool:
        """Returns whether a port with so many callers who are known may have one more.

        No more than are free to all others: however many ports take all they get, another one
        finds room.
        """
        return proven < self._house.most_callers - self._proven

    def enter(self) -> None:
        """Counts one whom its server knows."""
        self._proven += 1

    def leave(self) -> None:
        """Counts one of them that is gone."""
        self._proven -= 1

    def refusal(self, startup: Startup) -> bytes | None:
        """Returns what to answer one whom no server would let in; None for all others."""
        if startup.database != self._house.database:
            return refusal(SqlState.INVALID_CATALOG_NAME, "there is no such database here")
        if startup.user not in self._house.logins:
            return refusal(SqlState.INVALID_AUTHORIZATION, "there is no such login here")
        return None

    async def connected(self, deployment: DeploymentId) -> ServerEnd:
        """Returns a new connection to the deployment's server, awake.

        Raises:
            BulkheadError: it is not to be reached now, and why.
            OSError: it could not be reached.
            TimeoutError: it does not wake in time.
        """
        async with asyncio.timeout(_WAKE_SECONDS):
            for _ in range(_TRIES - 1):
                with suppress(ConnectionError):
                    return await _connected(await self._waker.wake(deployment))
            return await _connected(await self._waker.wake(deployment))

    async def cancel(self, deployment: DeploymentId, request: CancelRequest) -> None:
        """Passes on a request to cancel, if there is a server that could heed it.

        Raises:
            BulkheadError: it is not known where the server is.
            OSError: it could not be reached.
            TimeoutError: it does not heed it in time.
        """
        async with asyncio.timeout(_CONNECT_SECONDS):
            address = await self._waker.awake(deployment)
            if address is None:
                return
            reader, writer = await asyncio.open_connection(address.host, address.port)
            try:
                writer.write(request.raw)
                # The server says nothing: it ends the connection once the request is heeded.
                await reader.read()
            finally:
                writer.close()


async def _connected(address: DatabaseAddress) -> ServerEnd:
    loop = asyncio.get_running_loop()
    _, end = await loop.create_connection(ServerEnd, address.host, address.port)
    return end


def why_not(error: Exception) -> bytes:
    """Returns what to answer when `connected` has raised `error`."""
    state = SqlState.CANNOT_CONNECT_NOW
    if not isinstance(error, BulkheadError):
        return refusal(state, "the database does not answer", _LATER)
    if error.reason is Reason.DEPLOYMENT_SUSPENDED:
        return refusal(state, error.message, "resume the deployment, then connect again")
    passing = isinstance(error, UnavailableError)
    return refusal(state, error.message, _LATER if passing else "")
