"""What a token endpoint's answer means: a grant, a refusal, a delay, or nothing that is certain.

When in doubt an answer is lost: taking a spent refresh token for an unspent one, or the reverse,
ends a grant.
"""

import json
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn

import httpx

from services.credentials.domain import (
    AnswerLostError,
    Grant,
    GrantRefusedError,
    ProviderAwayError,
    ProviderError,
    StateReason,
)
from services.credentials.providers.catalogue import OAuth
from services.credentials.providers.injection import is_sendable

_LONGEST_WAIT = timedelta(hours=1)
_LONGEST_LIFE = timedelta(days=3_650)
# Of a token whose lifetime is said, but cannot be: as long as it takes to ask again.
_DOUBTFUL_LIFE = timedelta(minutes=5)
_MOST_SCOPES_GRANTED = 1_000
# RFC 6749 separates scopes by a space, some providers by a comma, and some by the one that they do
# not ask for; none has a comma within one.
_BETWEEN_SCOPES = re.compile(r"[,\s]+")
_TOKEN_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")
_ERROR_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_ .-]{0,63}")
_UNNAMED = "unnamed"
# RFC 6749, 5.2 and 4.1.2.1; RFC 8628, 3.5; and what providers call the same.
_CLIENT_ERRORS = frozenset({"invalid_client", "unauthorized_client"})
_PASSING_ERRORS = frozenset(
    {"temporarily_unavailable", "slow_down", "rate_limited", "ratelimited", "rate_limit_exceeded"}
)
_THEIR_ERRORS = frozenset(
    {
        "server_error",
        "internal_error",
        "internal_server_error",
        "fatal_error",
        "service_unavailable",
        "request_timeout",
    }
)


def read_grant(
    oauth: OAuth, answer: httpx.Response, elapsed: timedelta, secrets: Collection[str]
) -> Grant:
    """Returns what the answer grants; lifetimes count from `elapsed` before now.

    `secrets` are what was sent: no text of an error repeats them.

    Raises:
        ProviderError: it grants nothing, or nothing that can be used.
    """
    content = json_object(answer)
    if answer.is_success and content is not None and _text_at(content, oauth.access_token_at):
        return _grant(oauth, content, elapsed)
    raise refusal(oauth, answer, content, secrets)


def refusal(
    oauth: OAuth,
    answer: httpx.Response,
    content: Mapping[str, Any] | None,
    secrets: Collection[str],
) -> ProviderError:
    """Returns what an answer without a grant means."""
    error = error_name(oauth, content, secrets)
    if answer.status_code == httpx.codes.TOO_MANY_REQUESTS or error in _PASSING_ERRORS:
        return ProviderAwayError("the provider asks to wait", retry_after(answer))
    if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE and "retry-after" in answer.headers:
        return ProviderAwayError("the provider is away", retry_after(answer))
    if answer.is_server_error or error in _THEIR_ERRORS:
        return AnswerLostError(f"the provider failed with status {answer.status_code}")
    if error is not None:
        return GrantRefusedError(_reason(oauth, error), error)
    return _without_error(answer, content)


def _without_error(answer: httpx.Response, content: Mapping[str, Any] | None) -> ProviderError:
    if answer.is_success:
        return AnswerLostError("the provider's answer holds no token")
    if content is not None and answer.status_code == httpx.codes.UNAUTHORIZED:
        return GrantRefusedError(StateReason.CLIENT_REFUSED, "status 401")
    if content is not None and answer.status_code == httpx.codes.BAD_REQUEST:
        return GrantRefusedError(StateReason.GRANT_REFUSED, "status 400")
    # A page of something in between, or a redirect: the token endpoint has not heeded it.
    return ProviderAwayError(f"turned away with status {answer.status_code}", retry_after(answer))


def json_object(answer: httpx.Response) -> Mapping[str, Any] | None:
    """Returns the JSON object that the answer is; None when it is something else."""
    try:
        content = json.loads(answer.content)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def error_name(
    oauth: OAuth, content: Mapping[str, Any] | None, secrets: Collection[str]
) -> str | None:
    """Returns the error that the answer names, short and printable; None when it names none."""
    if content is None:
        return None
    error = next((found for path in oauth.errors_at if (found := _at(content, path))), None)
    if error is None:
        return _UNNAMED if content.get("ok") is False else None
    if not isinstance(error, str) or not _ERROR_NAME.fullmatch(error):
        return _UNNAMED
    return _UNNAMED if any(secret in error for secret in secrets if secret) else error


def _reason(oauth: OAuth, error: str) -> StateReason:
    if error in oauth.grant_errors:
        return StateReason.GRANT_REFUSED
    if error in _CLIENT_ERRORS or error in oauth.client_errors:
        return StateReason.CLIENT_REFUSED
    return StateReason.GRANT_REFUSED


def retry_after(answer: httpx.Response) -> timedelta | None:
    """Returns how long to wait (RFC 9110, 10.2.3), at most an hour; None when it is not said.

    A date counts from the answer's own `Date`, so that nobody's clock matters.
    """
    said = answer.headers.get("retry-after", "").strip()
    if said.isascii() and said.isdigit():
        return min(timedelta(seconds=min(int(said[:9]), 10**6)), _LONGEST_WAIT)
    until = _moment(said)
    if until is None:
        return None
    wait = until - (_moment(answer.headers.get("date", "")) or datetime.now(UTC))
    return min(max(wait, timedelta()), _LONGEST_WAIT)


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _grant(oauth: OAuth, content: Mapping[str, Any], elapsed: timedelta) -> Grant:
    return Grant(
        access_token=_sendable(_text_at(content, oauth.access_token_at)),
        token_type=oauth.token_type or _token_type(content.get("token_type")),
        expires_in=_expires_in(oauth, _at(content, oauth.expires_in_at), elapsed),
        refresh_token=_refresh_token(content, oauth),
        scopes=_scopes(_at(content, oauth.scope_at)),
    )


def _refresh_token(content: Mapping[str, Any], oauth: OAuth) -> str | None:
    token = _at(content, oauth.refresh_token_at)
    if token is None or token == "":
        return None
    return _sendable(token)


def _sendable(token: Any) -> str:
    if not isinstance(token, str) or not is_sendable(token):
        _lost("a token that cannot be sent")
    return str(token)


def _token_type(said: Any) -> str:
    if not isinstance(said, str) or not _TOKEN_TYPE.fullmatch(said) or said.lower() == "bearer":
        return "Bearer"
    return said


def _expires_in(oauth: OAuth, said: Any, elapsed: timedelta) -> timedelta | None:
    if said is None or said == "":
        life = oauth.default_lifetime
    else:
        seconds = _seconds(said)
        if seconds == 0 and oauth.zero_is_forever:
            return None
        life = _life(seconds) or oauth.default_lifetime or _DOUBTFUL_LIFE
    return None if life is None else max(life - elapsed, timedelta())


def _life(seconds: float | None) -> timedelta | None:
    if seconds is None or seconds <= 0:
        return None
    return timedelta(seconds=int(min(seconds, _LONGEST_LIFE.total_seconds())))


def _seconds(said: Any) -> float | None:
    if isinstance(said, bool) or not isinstance(said, int | float | str):
        return None
    try:
        seconds = float(said)
    except (ValueError, OverflowError):
        return None
    return None if seconds != seconds else seconds  # noqa: PLR0124 not a number


def _scopes(said: Any) -> tuple[str, ...] | None:
    if isinstance(said, str):
        said = _BETWEEN_SCOPES.split(said)
    if not isinstance(said, list):
        return None
    scopes = tuple(dict.fromkeys(part for part in said if part))
    if len(scopes) > _MOST_SCOPES_GRANTED or not all(
        isinstance(scope, str) and is_sendable(scope) for scope in scopes
    ):
        _lost("scopes that cannot be told")
    return scopes or None


def _at(content: Mapping[str, Any], path: str) -> Any:
    found: Any = content
    for name in path.split("."):
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _text_at(content: Mapping[str, Any], path: str) -> Any:
    return _at(content, path) or None


def _lost(what: str) -> NoReturn:
    raise AnswerLostError(f"the provider's answer holds {what}")
