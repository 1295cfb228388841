"""A span for a tenant's statement, that tells its shape and nothing of what is in it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.app_proxy.database.failures import StatementError
from services.app_proxy.database.statements import first_word

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
    """Surrounds a tenant's statement with its span; the driver's own would hold its literals."""
    with trace.get_tracer("bulkhead").start_as_current_span(
        first_word(sql)[:_MOST_WORD].upper(),
        kind=SpanKind.CLIENT,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        if span.is_recording():
            span.set_attribute("db.system.name", "postgresql")
            span.set_attribute("db.query.text", shape(sql))
        with suppress_instrumentation():
            try:
                yield
            except StatementError as error:
                span.set_attribute("db.response.status_code", error.failure.code)
                span.set_status(Status(StatusCode.ERROR))
                raise


def shape(sql: str) -> str:
    """Returns `sql` with every literal as `?` and without comments, cut."""
    return _TOKEN.sub(_replaced, sql[: _MOST_CHARACTERS * 10])[:_MOST_CHARACTERS].strip()


def _replaced(token: re.Match[str]) -> str:
    if token["name"] is not None:
        return token["name"]
    return " " if token["comment"] is not None else "?"
