"""A span for each MCP message, in the trace of the request that carried it."""

from typing import Any

from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp_types import CallToolResult
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from services.shared.recording import SCOPE, fail

TRACE = "bulkhead.trace"
_MOST_NAME = 64
# As the conventions for tools name it.
_TOOL_ERROR = "tool_error"


class MessageSpans:
    """Stands in for the SDK's own spans, which would follow a trace that the message names.

    What is inside a message is its sender's word; the trace is the front door's, from end to end.
    """

    def __init__(self) -> None:
        self._tracer = trace.get_tracer(SCOPE)

    async def __call__(
        self, ctx: ServerRequestContext[Any, Any], call_next: CallNext
    ) -> HandlerResult:
        """Surrounds the handling of one message with its span."""
        name = _named(ctx)
        with self._tracer.start_as_current_span(
            f"{ctx.method[:_MOST_NAME]} {name}".rstrip(),
            context=_carrier(ctx),
            kind=SpanKind.INTERNAL,
            attributes={"mcp.method.name": ctx.method, "gen_ai.tool.name": name},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                result = await call_next(ctx)
            except Exception as error:
                fail(span, type(error).__name__)
                raise
            if isinstance(result, CallToolResult | dict) and _is_error(result):
                fail(span, _TOOL_ERROR)
            return result


def _named(ctx: ServerRequestContext[Any, Any]) -> str:
    name = (ctx.params or {}).get("name")
    return name[:_MOST_NAME] if isinstance(name, str) else ""


def _carrier(ctx: ServerRequestContext[Any, Any]) -> Context | None:
    context: Context | None = ctx.request.scope.get(TRACE) if ctx.request is not None else None
    return context


def _is_error(result: CallToolResult | dict[str, Any]) -> bool:
    if isinstance(result, CallToolResult):
        return result.is_error
    return result.get("isError") is True
