"""How many valid keys each pepper still has: when none, the pepper can go."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from opentelemetry import metrics

from services.auth import pepper_store
from services.auth.pepper import Keyring
from services.shared.errors import UnavailableError
from services.shared.postgres import Database

CENSUS_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Census:
    """Valid keys by the id of their pepper."""

    keys: Mapping[str, int]
    # Stored before peppers had ids, and not used since.
    unrecorded: int
    # Under peppers that are not configured: nobody can use these.
    lost: int


class PepperCensus:
    """Counts, tells, and counts again."""

    def __init__(self, database: Database, keyring: Keyring, meter: metrics.Meter) -> None:
        self._database = database
        self._keyring = keyring
        self._gauge = meter.create_gauge(
            "bulkhead.auth.valid_keys", "{key}", "Valid keys by the pepper they are stored under."
        )

    async def take(self) -> Census:
        """Returns the numbers of now, after the gauge was set to them."""
        known = self._keyring.ids
        async with self._database.service() as connection:
            if len(known) == 1:
                # Only under this pepper can they be found at all.
                await pepper_store.adopt_keys(connection, known[0])
            counted = await pepper_store.count_keys(connection)
        unrecorded = counted.pop(None, 0)
        lost = sum(number for pepper, number in counted.items() if pepper not in known)
        census = Census({pepper: counted.get(pepper, 0) for pepper in known}, unrecorded, lost)
        for pepper, number in census.keys.items():
            self._gauge.set(number, {"pepper": pepper})
        return census

    async def tell(self) -> None:
        """Logs the numbers of now, and warns of keys that no pepper opens."""
        census = await self.take()
        log = structlog.get_logger()
        log.info(
            "valid keys by pepper",
            current=self._keyring.current.id,
            unrecorded=census.unrecorded,
            keys=dict(census.keys),
        )
        if census.lost:
            log.warning("keys of a pepper that is not configured are not valid", keys=census.lost)

    async def run(self) -> None:
        """Counts for ever."""
        while True:
            await asyncio.sleep(CENSUS_SECONDS)
            try:
                await self.take()
            except UnavailableError:
                structlog.get_logger().warning("keys cannot be counted by pepper")
