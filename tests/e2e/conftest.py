"""One stack for the tests that only use it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.e2e.outside import Stack, running_stack


@pytest.fixture(scope="session")
async def stack(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path_factory.mktemp("e2e") / "state") as running:
        yield running


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"
