"""Erases counters in Valkey: by their names alone, since nothing can be enumerated (P-34)."""

import asyncio
import time
from collections.abc import Collection
from typing import Final

from services.ratelimit.months import KEPT_US, Month, month_at
from services.ratelimit.store import bucket_key, month_key
from services.shared.ids import DeploymentId
from services.shared.redis import Valkey, valkey_errors

# Commands under way at once, of the client's connections.
_LANES: Final = 8


class ErasableCounters:
    """Knows the names of everything that is counted of a deployment."""

    def __init__(self, valkey: Valkey, patience_seconds: float) -> None:
        self._valkey = valkey
        self._patience = patience_seconds
        self._lanes = asyncio.Semaphore(_LANES)

    async def erase(self, deployments: Collection[DeploymentId]) -> None:
        """Erases bucket, leases and months of the deployments; what is gone already stays gone.

        Raises:
            UnavailableError: Valkey is away; some of it may be erased.
        """
        months = kept_months(time.time_ns() // 1_000)
        await asyncio.gather(*(self._erase(names_of(each, months)) for each in deployments))

    async def _erase(self, names: Collection[str]) -> None:
        # All of one deployment, which is in one slot of a cluster.
        with valkey_errors():
            async with self._lanes, asyncio.timeout(self._patience):
                await self._valkey.execute_command("UNLINK", *names)


def names_of(deployment_id: DeploymentId, months: Collection[str]) -> list[str]:
    """Returns the name of everything that is counted of the deployment in these months."""
    counts = [month_key(deployment_id, month) for month in months]
    return [bucket_key(deployment_id), *counts, *(f"{count}:replayed" for count in counts)]


def kept_months(now_us: int) -> list[str]:
    """Returns the months of which a count may be in Valkey, by any clock that is a little wrong."""
    months = [month_at(month_at(now_us).ends_us)]
    while months[-1].ends_us + KEPT_US > now_us - _DAY_US:
        months.append(_before(months[-1]))
    return [month.name for month in months]


_DAY_US: Final = 86_400 * 1_000_000


def _before(month: Month) -> Month:
    return month_at(month.begins_us - 1)
