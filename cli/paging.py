"""Lists, followed from page to page."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from google.protobuf.message import Message

from cli.rendering import document
from cli.session import Session

MOST_PER_PAGE = 1_000
_NOTHING: Mapping[str, Any] = MappingProxyType({})

# Asks for a page of so many items after a token, and returns the answer.
Ask = Callable[[int, str], Awaitable[Any]]


async def show_list(
    session: Session,
    name: str,
    ask: Ask,
    limit: int | None,
    text: Callable[[list[Any]], str],
    also: Sequence[str] = (),
    known: Mapping[str, Any] = _NOTHING,
) -> None:
    """Prints all items of the answers' field `name`, or the first `limit`.

    With `--json` also the fields `also` of the first answer, and what is `known` beside.
    """
    found: list[Any] = []
    token = ""
    more: dict[str, Any] = {}
    while True:
        left = MOST_PER_PAGE if limit is None else limit - len(found)
        answer = await ask(min(MOST_PER_PAGE, left), token)
        found += getattr(answer, name)
        more = more or _fields(answer, also)
        token = answer.next_page_token
        if not token or (limit is not None and len(found) >= limit):
            break
    shown = found[:limit]
    session.show({**known, name: [document(one) for one in shown], **more}, text(shown))


def _fields(answer: Message, names: Sequence[str]) -> dict[str, Any]:
    alone = document(type(answer)(**{name: getattr(answer, name) for name in names}))
    return {name: alone[name] for name in names}
