"""Work beside what is served ends with it, whatever it does with a cancellation."""

import asyncio
from contextlib import suppress

import pytest

from services.shared.background import background

PATIENCE_SECONDS = 30


async def test_work_that_loses_a_cancellation_is_told_again() -> None:
    begun, cancelled = asyncio.Event(), 0

    async def deaf_once() -> None:
        nonlocal cancelled
        while True:
            begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled += 1
                if cancelled > 1:
                    raise

    async with asyncio.timeout(PATIENCE_SECONDS):
        async with background(deaf_once()):
            await begun.wait()
    assert cancelled > 1


async def test_all_work_has_ended_and_what_failed_is_raised() -> None:
    ended = []

    async def fails() -> None:
        raise ValueError("by itself")

    async def lasts() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        ended.append("lasts")

    with pytest.raises(ValueError, match="by itself"):
        async with background(fails(), lasts()):
            await asyncio.sleep(0)
    assert ended == ["lasts"]


async def test_what_the_block_raises_comes_first() -> None:
    async def fails() -> None:
        raise ValueError("by itself")

    async def block() -> None:
        async with background(fails()):
            await asyncio.sleep(0)
            raise KeyError

    with pytest.raises(KeyError):
        await block()
