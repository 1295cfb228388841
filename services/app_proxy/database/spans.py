"""A span for a tenant's statement, that tells its shape and nothing of what is in it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from services.app_proxy.database.failures import StatementError
from services.app_proxy.database.statements import first_word
from services.shared.recording import SCOPE, fail

_MOST_CHARACTERS = 1_000
_MOST_WORD = 30
_TOKEN = re.compile(
    # A comment with another inside takes all that follows: they nest, and this does not count.
    r"(?P<comment>--[^\r\n]*|/\*(?:(?!/\*).)*?\*/|/\*.*)"
    r"|(?P<text>[eE]'(?:[^'\\]|\\.|'')*(?:'|\Z)|'(?:[^']|'')*(?:'|\Z)"
    r"|\$(?P<tag>[^\W\d]\w*)\$.*?(?:\$(?P=tag)\$|\Z)|\$\$.*?(?:\$\$|\Z))"
    r'|(?P<name>"(?:[^"]|"")*"?|\$\d+|[^\W\d]\w*)'
    r"|(?P<number>\d[\w.]*)",
    re.DOTALL,
)


@contextmanager
def statement_span(sql: str) -> Iterator[None]:
    """Surrounds a tenant's statement with its span, where the trace is kept.

    A statement that fails is the tenant's own affair, and its message may hold what is in rows: the
    span says the SQLSTATE alone.
    """
    if not trace.get_current_span().is_recording():
        yield
        return
    with trace.get_tracer(SCOPE).start_as_current_span(
        first_word(sql)[:_MOST_WORD].upper(),
        kind=SpanKind.CLIENT,
        attributes={"db.system.name": "postgresql", "db.query.text": shape(sql)},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except StatementError as error:
            span.set_attribute("db.response.status_code", error.failure.code)
            fail(span, error.failure.code)
            raise
        except BaseException as error:
            fail(span, type(error).__name__)
            raise


def shape(sql: str) -> str:
    """Returns `sql` with every literal as `?` and without comments, cut."""
    return _TOKEN.sub(_replaced, sql[: _MOST_CHARACTERS * 10])[:_MOST_CHARACTERS].strip()


def _replaced(token: re.Match[str]) -> str:
    if token["name"] is not None:
        return token["name"]
    return " " if token["comment"] is not None else "?"
