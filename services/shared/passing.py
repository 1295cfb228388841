"""The trace that a call is part of when nobody keeps it: passed on as it came.

That is what nearly every call has where few traces are kept, so its ids are read when somebody asks
for them, and it is not put together again for the next one.
"""

import re
from collections.abc import Mapping
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context

TRACE_PARENT: Final = "traceparent"
_TRACE_STATE: Final = "tracestate"
# The version that we write ourselves, not sampled, with ids that are no zeros; others are W3C's.
_PLAIN: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-00")
_TRACE_ID: Final = slice(3, 35)
_SPAN_ID: Final = slice(36, 52)


class Passed(trace.NonRecordingSpan):
    """The remote span of a trace that is not kept."""

    def __init__(self, trace_parent: str) -> None:
        super().__init__(trace.INVALID_SPAN_CONTEXT)
        self.trace_parent = trace_parent

    @property
    def trace_id(self) -> str:
        """The id of the trace in lower-case hex."""
        return self.trace_parent[_TRACE_ID]

    def get_span_context(self) -> trace.SpanContext:
        """Returns the ids, which are read now."""
        return trace.SpanContext(
            int(self.trace_id, 16), int(self.trace_parent[_SPAN_ID], 16), is_remote=True
        )


def passed(carrier: Mapping[str, str]) -> Context | None:
    """Returns the context of a trace that `carrier` says is not kept, and no more than that."""
    trace_parent = carrier[TRACE_PARENT]
    if carrier.get(_TRACE_STATE) or _PLAIN.fullmatch(trace_parent) is None:
        return None
    return trace.set_span_in_context(Passed(trace_parent), Context())


def is_kept(context: Context | None = None) -> bool:
    """Returns whether the trace of `context`, or of the current one, is kept."""
    span = trace.get_current_span(context)
    return not isinstance(span, Passed) and span.get_span_context().trace_flags.sampled


def trace_id() -> str:
    """Returns the id of the current trace in lower-case hex; empty without one."""
    span = trace.get_current_span()
    if isinstance(span, Passed):
        return span.trace_id
    context = span.get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""
