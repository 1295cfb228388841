"""What the tests of the contracts share."""

from collections.abc import AsyncIterator

import pytest

from tests.scripted_api import ScriptedApi, scripted_api


@pytest.fixture
async def api() -> AsyncIterator[ScriptedApi]:
    async with scripted_api() as scripted:
        yield scripted
