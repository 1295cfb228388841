"""Lists, followed from page to page."""

from collections.abc import Awaitable, Callable
from typing import Any

from cli.rendering import document
from cli.session import Session

MOST_PER_PAGE = 1_000

# Asks for a page of so many items after a token, and returns the answer.
Ask = Callable[[int, str], Awaitable[Any]]


async def show_list(
    session: Session, name: str, ask: Ask, limit: int | None, text: Callable[[list[Any]], str]
) -> None:
    """Prints all items of the answers' field `name`, or the first `limit`."""
    found: list[Any] = []
    token = ""
    while True:
        left = MOST_PER_PAGE if limit is None else limit - len(found)
        answer = await ask(min(MOST_PER_PAGE, left), token)
        found += getattr(answer, name)
        token = answer.next_page_token
        if not token or (limit is not None and len(found) >= limit):
            break
    shown = found[:limit]
    session.show({name: [document(one) for one in shown]}, text(shown))
