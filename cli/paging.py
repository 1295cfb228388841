"""Lists, followed from page to page."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

Item = TypeVar("Item")

_MOST_PER_PAGE = 1_000


async def listed(
    page: Callable[[int, str], Awaitable[tuple[list[Item], str]]], limit: int | None
) -> list[Item]:
    """Returns all items, or the first `limit`.

    `page` is asked with a page size and a token, and answers with items and the next token, which
    is empty after the last page.
    """
    found: list[Item] = []
    token = ""
    while True:
        size = _MOST_PER_PAGE if limit is None else min(_MOST_PER_PAGE, limit - len(found))
        items, token = await page(size, token)
        found += items
        if not token or (limit is not None and len(found) >= limit):
            return found[:limit]
