"""`/oauth/callback`: where providers lead people back to, on the hosts of the API.

The redirect's GET changes nothing: mail scanners and browsers open links before anyone decides. It
asks the person, and the answer comes by POST, which uses the state up. The question names who will
have the grant, because whoever began the authorization may have sent its link to someone else
(consent phishing, RFC 9700, 4.8): a provider asks once and may lead back unasked from then on.
"""

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import parse_qsl

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from services.app_proxy import oauth_pages as pages
from services.app_proxy.oauth_pages import ALLOW, CANCEL, PATH, Asked, Page
from services.shared.errors import (
    BulkheadError,
    FailedPreconditionError,
    InvalidFieldError,
    NotFoundError,
    Reason,
    UnavailableError,
)

_MOST_STATE, _MOST_CODE = 256, 4_096
_MOST_BODY = 16 * 1024
_MOST_FIELDS = 30
_DENIED = "access_denied"
# What browsers say of our own form, and of what no page sent (W3C, Fetch Metadata). Origin says
# nothing here: under our Referrer-Policy browsers send `null` for it.
_OWN_SITES = frozenset({"same-origin", "none"})
_FORM_TYPE = "application/x-www-form-urlencoded"


class OutcomeUnknownError(Exception):
    """The answer did not come in time: it may be done, or not."""


class Authorizations(Protocol):
    """credentials, as the page needs it. All methods raise BulkheadError."""

    async def describe(self, state: str) -> Asked:
        """Returns what is asked for.

        Raises:
            NotFoundError: the state is unknown, used or expired.
        """
        ...

    async def finish(self, state: str, code: str) -> tuple[str, str]:
        """Returns the provider's title and the connection's name, once it is connected.

        Without a code the state is used up, and nothing is connected.

        Raises:
            NotFoundError: the state is unknown, used or expired.
            OutcomeUnknownError: it cannot be told how it ended.
        """
        ...


@dataclass(frozen=True, slots=True)
class Answered:
    """What came with a redirect, or with our own form; secret."""

    state: str = field(repr=False)
    code: str = field(repr=False)
    # The provider's `error` (RFC 6749, 4.1.2.1).
    error: str = ""
    decision: str = ""


class MalformedError(Exception):
    """What was sent is not what a provider or our form sends."""


class OAuthCallback:
    """Answers the one path on the API's hosts, and passes everything else on.

    A deployment's own host is passed on, too: what it has at this path is its own.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        authorizations: Authorizations,
        hosts: Collection[str],
        most_at_once: int,
    ) -> None:
        self._app = app
        self._authorizations = authorizations
        self._hosts = frozenset(hosts)
        self._free = most_at_once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with a page, or passes on."""
        if not self._is_ours(scope):
            await self._app(scope, receive, send)
            return
        try:
            page = await self._page(Request(scope, receive))
        except ClientDisconnect:
            return
        response = Response(page.html, page.status, headers=dict(page.headers))
        await response(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["path"] != PATH:
            return False
        hosts = Request(scope).headers.getlist("host")
        return len(hosts) == 1 and _without_port(hosts[0]) in self._hosts

    async def _page(self, request: Request) -> Page:
        try:
            async with self._place():
                return await self._answer(request)
        except MalformedError:
            return pages.malformed()
        except OutcomeUnknownError:
            return pages.no_answer()
        except BulkheadError as error:
            return _refusal(error)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """Takes one of the places: a provider that hangs must not take the whole process."""
        if not self._free:
            raise UnavailableError("too many authorizations at once", Reason.OVERLOADED)
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def _answer(self, request: Request) -> Page:
        match request.method:
            case "GET" | "HEAD":
                return await self._ask(_answered(request.url.query))
            case "POST":
                if _is_foreign(request):
                    return pages.foreign()
                return await self._decide(_answered(await _form(request)))
            case _:
                return pages.wrong_method()

    async def _ask(self, answered: Answered) -> Page:
        asked = await self._authorizations.describe(answered.state)
        if answered.error:
            by_person = answered.error == _DENIED
            return pages.turned_down(asked, answered.state, by_person=by_person)
        if not answered.code:
            raise MalformedError
        return pages.ask(asked, answered.state, answered.code)

    async def _decide(self, answered: Answered) -> Page:
        if answered.decision == CANCEL:
            await self._authorizations.finish(answered.state, "")
            return pages.cancelled()
        if answered.decision != ALLOW or not answered.code:
            raise MalformedError
        return pages.connected(*await self._authorizations.finish(answered.state, answered.code))


def _refusal(error: BulkheadError) -> Page:
    """Returns the page for an error; its own words are for programs."""
    match error:
        case NotFoundError() | InvalidFieldError():
            return pages.unknown_link()
        case UnavailableError(reason=Reason.PROVIDER_UNAVAILABLE):
            return pages.provider_away()
        case FailedPreconditionError(reason=Reason.AUTHORIZATION_REFUSED):
            return pages.refused()
        case FailedPreconditionError():
            return pages.not_connected()
        case _:
            wait = error.retry_after.total_seconds() if error.retry_after else 1
            return pages.away(max(1, round(wait)))


def _is_foreign(request: Request) -> bool:
    """Whether a browser says that another site's page sent it; programs say nothing."""
    return not _OWN_SITES.issuperset(request.headers.getlist("sec-fetch-site"))


async def _form(request: Request) -> str:
    """Returns the body of our own form."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != _FORM_TYPE:
        raise MalformedError
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BODY:
            raise MalformedError
    try:
        return body.decode("ascii")
    except UnicodeDecodeError as error:
        raise MalformedError from error


def _answered(encoded: str) -> Answered:
    """Returns what `encoded` says; what a provider adds beside is not looked at."""
    try:
        pairs = parse_qsl(
            encoded, keep_blank_values=True, max_num_fields=_MOST_FIELDS, errors="strict"
        )
    except ValueError as error:
        raise MalformedError from error
    bounds = {"state": _MOST_STATE, "code": _MOST_CODE, "error": 100, "decision": 10}
    found = _once([pair for pair in pairs if pair[0] in bounds])
    if not found.get("state") or any(
        len(value) > bounds[name] or not value.isascii() or not value.isprintable()
        for name, value in found.items()
    ):
        raise MalformedError
    return Answered(
        found["state"], found.get("code", ""), found.get("error", ""), found.get("decision", "")
    )


def _once(pairs: list[tuple[str, str]]) -> Mapping[str, str]:
    """Returns the pairs by name; of two with one name nobody knows which is meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedError
    return found


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).lower()
