"""What can go wrong with a statement, in words for whoever wrote it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import asyncpg

_MOST_CHARACTERS = 2_000
# The server is gone, going, or not there yet; or what listens there is another server.
LOST = (
    OSError,
    EOFError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ProtocolViolationError,
    # The driver refuses to use a connection on which the server has said that it is going.
    asyncpg.InternalClientError,
)
# How Postgres marks what ends the connection; a statement's RAISE reaches no further than ERROR.
_ENDING = frozenset({"FATAL", "PANIC"})


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a statement did not do what it should."""

    # SQLSTATE of Postgres; for failures of ours the standard's nearest.
    code: str
    message: str
    # Position in the statement, in characters from 1.
    position: int | None = None
    detail: str | None = None
    hint: str | None = None
    # Seconds after which the same statement may succeed.
    retry_after: float | None = None


class StatementError(Exception):
    """A statement failed; `failure` says why, without anything internal."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ConnectionLostError(Exception):
    """The connection broke; `sent` tells whether the statement may have been executed."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("the connection to the database broke")
        self.sent = sent


class LoginRefusedError(ConnectionLostError):
    """The server does not take the login: its password was changed, or the server is another's."""


def refused(code: str, message: str, hint: str | None = None) -> StatementError:
    """Returns the error of a statement that was not executed because of its form."""
    return StatementError(Failure(code, message, hint=hint))


def is_lost(error: BaseException) -> bool:
    """Returns whether `error` means that the server is lost.

    What the server says of a statement does not, whatever its SQLSTATE: a statement can raise any.
    """
    if not isinstance(error, LOST):
        return False
    # None: said by the driver, of its connection.
    said = error.as_dict().get("severity_en") if isinstance(error, asyncpg.PostgresError) else None
    return said is None or said in _ENDING


@contextmanager
def statement_errors() -> Iterator[None]:
    """Turns what Postgres and its driver say of a statement inside the block into StatementError.

    A connection that breaks, and time that runs out, pass through as they are.
    """
    try:
        yield
    except asyncpg.ReadOnlySQLTransactionError as error:
        hint = "use the tool `execute` to change anything"
        raise StatementError(_failure(error, hint)) from error
    except asyncpg.PostgresError as error:
        if is_lost(error):
            raise
        raise StatementError(_failure(error)) from error
    except (asyncpg.UnsupportedClientFeatureError, UnicodeError) as error:
        raise refused("0A000", _cut(str(error))) from error


def _failure(error: asyncpg.PostgresError, hint: str | None = None) -> Failure:
    fields = error.as_dict()
    position = fields.get("position")
    return Failure(
        code=fields.get("sqlstate") or "XX000",
        message=_cut(fields.get("message") or str(error)),
        position=int(position) if position else None,
        detail=_cut(fields["detail"]) if fields.get("detail") else None,
        hint=hint or (_cut(fields["hint"]) if fields.get("hint") else None),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
