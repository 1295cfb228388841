"""A person's browser, as far as pages with one form need it: it reads them and presses a button."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urljoin

import httpx2

from deploy.local.story.stage import Surprise
from deploy.local.story.visitor import LoopbackTransport

_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Page:
    """A page as a person sees it."""

    url: str
    status: int
    # Its headlines, without tags.
    heading: str
    # Where its form leads, and what it holds beside the buttons.
    action: str = ""
    hidden: Mapping[str, str] = field(default_factory=dict, repr=False)
    # By what they say: name and value.
    buttons: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Browser:
    """Follows redirects, as a browser does; keeps nothing."""

    http: httpx2.AsyncClient

    async def open(self, url: str) -> Page:
        """Returns the page at `url`."""
        return _page(await self.http.get(url))

    async def press(self, page: Page, button: str) -> Page:
        """Returns the page to which the button that says `button` leads.

        Raises:
            Surprise: the page has none.
        """
        if button not in page.buttons:
            raise Surprise(f"“{page.heading}” ({page.status}) has no button that says {button}")
        name, value = page.buttons[button]
        url = urljoin(page.url, page.action)
        return _page(await self.http.post(url, data={**page.hidden, name: value}))


@asynccontextmanager
async def browsing() -> AsyncIterator[Browser]:
    """Yields a browser; every host name is this machine."""
    async with httpx2.AsyncClient(
        transport=LoopbackTransport(), timeout=_SECONDS, follow_redirects=True, trust_env=False
    ) as http:
        yield Browser(http)


def _page(answer: httpx2.Response) -> Page:
    reader = _Reader()
    reader.feed(answer.text)
    return Page(
        url=str(answer.url),
        status=answer.status_code,
        heading=" ".join(reader.heading.split()),
        action=reader.action,
        hidden=reader.hidden,
        buttons=reader.buttons,
    )


class _Reader(HTMLParser):
    """Finds headline, form and buttons."""

    def __init__(self) -> None:
        super().__init__()
        self.heading = self.action = ""
        self.hidden: dict[str, str] = {}
        self.buttons: dict[str, tuple[str, str]] = {}
        self._within = ""
        self._button = ("", "")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes where text belongs from here on."""
        found = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.action = found.get("action", "")
        elif tag == "input":
            self.hidden[found.get("name", "")] = found.get("value", "")
        elif tag == "button":
            self._button = found.get("name", ""), found.get("value", "")
        if tag in {"h1", "button"}:
            self._within = tag

    def handle_endtag(self, tag: str) -> None:
        """Notes that the text is over."""
        if tag == self._within:
            self._within = ""

    def handle_data(self, data: str) -> None:
        """Keeps what headlines and buttons say."""
        if self._within == "h1":
            self.heading += data
        elif self._within == "button":
            self.buttons[data.strip()] = self._button
