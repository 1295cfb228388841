"""One stack for the tests that only use it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.outside import Stack, running_stack


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    # So slow a free plan that its burst is exceeded however slow the machine is.
    slow = ("--set", "ratelimit.RATE_FREE=1", "--set", "ratelimit.BURST_FREE=5")
    async with running_stack(tmp_path_factory.mktemp("e2e") / "state", *slow) as running:
        yield running


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"
