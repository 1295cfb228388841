"""Replicas of what counts in ratelimit, in this process, over real stores."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from services.ratelimit.circuit import Circuit, State
from services.ratelimit.counting import counting
from services.ratelimit.domain import Decision, Limits, Reading, Take
from services.ratelimit.settings import Settings
from services.ratelimit.usage_store import UsageStore
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import open_database
from services.shared.redis import open_valkey
from services.shared.settings import PostgresSettings
from tests.databases import SERVICES
from tests.losable_valkey import LosableValkey

TENANT = TenantId("ten_of_the_test")
PATIENCE_SECONDS = 30.0
_POLL_SECONDS = 0.02
_MIGRATIONS: Path = SERVICES / "ratelimit" / "migrations"


@asynccontextmanager
async def replica(
    valkey: LosableValkey, database: PostgresSettings, **changes: Any
) -> AsyncIterator[Circuit]:
    """Yields one that decides; it ends as one that is drained does."""
    stores = database.model_dump() | valkey.settings().model_dump()
    # A machine that stalls is no store that is away.
    patient = dict.fromkeys(("valkey_patience_seconds", "month_patience_seconds"), PATIENCE_SECONDS)
    settings = Settings(**(stores | patient | changes))
    async with (
        open_database(settings, "ratelimit", _MIGRATIONS) as opened,
        open_valkey(settings) as client,
        counting(settings, client, opened) as circuit,
    ):
        yield circuit


async def take(
    circuit: Circuit, deployment: DeploymentId, limits: Limits, cost: int = 1
) -> Reading:
    """Returns the answer to one take."""
    (reading,) = await circuit.take([Take(deployment, limits, cost, TENANT)])
    return reading


async def admitted(
    circuit: Circuit, deployment: DeploymentId, limits: Limits, calls: int = 1
) -> int:
    """Returns how many of `calls` single calls in one batch were admitted."""
    readings = await circuit.take([Take(deployment, limits, 1, TENANT)] * calls)
    return sum(reading.decision is Decision.ALLOWED for reading in readings)


async def saved(database: PostgresSettings, deployment: DeploymentId, month: str) -> int:
    """Returns what Postgres would count the month from."""
    async with open_database(database, "ratelimit", _MIGRATIONS) as opened:
        (known,) = await UsageStore(opened).known([deployment], month)
    return known.counted


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns once the condition holds."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(_POLL_SECONDS)


async def until_state(circuit: Circuit, wanted: State) -> None:
    """Returns once the replica is in that state."""

    async def reached() -> bool:
        return circuit.state is wanted

    await until(reached)


async def until_sharing(circuit: Circuit, replicas: int) -> None:
    """Returns once the replica knows of so many, and they of it."""

    async def known() -> bool:
        try:
            return circuit.sharing() == replicas
        except UnavailableError:
            return False

    await until(known)
