"""What the tests of the contracts share."""

from collections.abc import AsyncIterator

import pytest

from tests.scripted_api import ScriptedApi, scripted_api
from tests.warm_commands import ADDRESS_VARIABLE, warm_commands


@pytest.fixture(scope="session", autouse=True)
async def commands() -> AsyncIterator[None]:
    """Lets `bulkhead` of `tests/scripted_api.py` begin at once."""
    with pytest.MonkeyPatch.context() as patched:
        async with warm_commands() as warm:
            patched.setenv(ADDRESS_VARIABLE, str(warm.address))
            yield


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as scripted:
        yield scripted
