"""Refreshes that are cut off: a refresh token is never spent twice, and none is given up early."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from services.credentials.refresh.terms import RefreshPoint
from services.credentials.settings import Settings
from services.shared.errors import Reason
from tests.databases import Databases
from tests.provider_double import ProviderDouble
from tests.vending_replica import Lease, lease, replica, replica_settings

LOST = ("needs_reauthorization", "refresh_lost", False)
ACTIVE = ("active", None, False)


@pytest.fixture(scope="module")
async def asking(home: Path, databases: Databases, provider: ProviderDouble) -> Settings:
    """Settings for a provider that tells whether a refresh token is spent."""
    folder = home / "asking"
    folder.mkdir()
    database = await databases.fresh("credentials")
    return replica_settings(folder, provider, database, introspects=True)


@pytest.fixture(scope="module")
async def trying(home: Path, databases: Databases, provider: ProviderDouble) -> Settings:
    """Settings for a provider that has to be tried."""
    folder = home / "trying"
    folder.mkdir()
    return replica_settings(folder, provider, await databases.fresh("credentials"))


@pytest.mark.promise("P-33")
@pytest.mark.parametrize(
    ("asks", "point"),
    [(False, point) for point in RefreshPoint]
    + [(True, RefreshPoint.MARKED), (True, RefreshPoint.ANSWERED)],
)
async def test_a_service_killed_in_a_refresh_spends_nothing_twice(
    asking: Settings, trying: Settings, provider: ProviderDouble, point: RefreshPoint, *, asks: bool
) -> None:
    settings = asking if asks else trying
    async with replica(settings) as own:
        lent = await lease(own, settings, provider)
        before = set(provider.state.access_tokens)
        await own.expire(lent)
        seen = provider.state.seen.copy()

        await _killed(settings, lent, point)

        spent = provider.state.seen["refresh"] - seen["refresh"]
        assert spent == (point in {RefreshPoint.ANSWERED, RefreshPoint.KEPT})
        if point in {RefreshPoint.MARKED, RefreshPoint.ANSWERED}:
            # The provider may be at it still: so it is left alone.
            assert (await own.refusal(lent)).reason is Reason.PROVIDER_UNAVAILABLE
            assert (await own.state(lent))[2]
            assert provider.state.seen["token"] - seen["token"] == spent
        await own.settle(lent)
        if point is RefreshPoint.ANSWERED:
            # Its answer is gone, and with it the only refresh token that is good.
            assert (await own.refusal(lent)).reason is Reason.CONNECTION_NEEDS_REAUTHORIZATION
            assert await own.state(lent) == LOST
            # A provider that can be asked is asked instead of tried.
            assert provider.state.seen["reuse"] - seen["reuse"] == (not asks)
        else:
            assert await own.vend(lent) not in before
            assert await own.state(lent) == ACTIVE
            assert provider.state.seen["refresh"] - seen["refresh"] == 1
            assert provider.state.seen["reuse"] == seen["reuse"]


async def _killed(settings: Settings, lent: Lease, point: RefreshPoint) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.refresh_process",
        lent.tenant_id,
        lent.connection_id,
        point,
        env=os.environ | _environment(settings),
    )
    assert await process.wait() == -9


def _environment(settings: Settings) -> dict[str, str]:
    values = settings.model_dump(exclude_defaults=True)
    return {f"BULKHEAD_{name.upper()}": str(value) for name, value in values.items()}
