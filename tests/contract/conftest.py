"""What the tests of the contracts share."""

from collections.abc import AsyncIterator

import pytest

from tests.scripted_api import ScriptedApi, scripted_api


@pytest.fixture(scope="session", autouse=True)
def commands_begin_at_once(commands: None) -> None:
    """Lets `bulkhead` of `tests/scripted_api.py` begin at once."""


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as scripted:
        yield scripted
