"""A replica in a process of its own, so that it can die: `python -m tests.refresh_process`.

Its settings are in `BULKHEAD_*`. It refreshes one connection, and kills itself, as `kill -9` would,
at the point that it is given.
"""

import asyncio
import os
import signal
import sys
from datetime import timedelta

from services.credentials.refresh.terms import RefreshPoint, Want
from services.credentials.settings import Settings
from services.shared.ids import ConnectionId, TenantId
from tests.vending_replica import NAME, replica


class Killer:
    """Kills the process at a point."""

    def __init__(self, at: RefreshPoint) -> None:
        self._at = at

    async def reached(self, point: RefreshPoint) -> None:
        """Does not return from the point."""
        if point is self._at:
            os.kill(os.getpid(), signal.SIGKILL)


async def main(tenant: str, connection: str, at: str) -> None:
    """Refreshes the connection as far as that."""
    want = Want(TenantId(tenant), ConnectionId(connection), NAME)
    async with replica(Settings(), Killer(RefreshPoint(at))) as own:
        await own.refreshes.fresh(want, timedelta(minutes=1))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
