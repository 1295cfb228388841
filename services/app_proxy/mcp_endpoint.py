"""The MCP endpoint by the official SDK: stateless, so that any replica can answer any request."""

import json
import secrets
from importlib.metadata import version
from typing import Any

import structlog
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
)
from mcp_types import (
    Tool as ListedTool,
)

from services.app_proxy.documents import INSTRUCTIONS
from services.app_proxy.door import Guest
from services.app_proxy.mcp_tracing import MessageSpans
from services.app_proxy.tools import ToolAnswer, Toolbox, ToolFailure
from services.shared.errors import BulkheadError

GUEST = "bulkhead.guest"


def session_manager(toolbox: Toolbox, request_bytes: int) -> StreamableHTTPSessionManager:
    """Returns the SDK's server of one process, for all deployments: a request brings its guest.

    The SDK's own check of host names stays off: hosts are checked by the door, against routes, and
    no request is let in on ambient authority that a rebound name could lend.
    """
    calls = ToolCalls(toolbox)
    server: Server[Any] = Server(
        "bulkhead",
        version=version("bulkhead"),
        instructions=INSTRUCTIONS,
        on_list_tools=calls.list_tools,
        on_call_tool=calls.call_tool,
        # No tool of ours takes arguments from headers; without this each call lists all tools.
        get_tool_input_schema=lambda _name: None,
    )
    server.middleware = [MessageSpans()]
    return StreamableHTTPSessionManager(
        app=server, json_response=True, stateless=True, max_request_body_size=request_bytes
    )


class ToolCalls:
    """MCP's words for the toolbox."""

    def __init__(self, toolbox: Toolbox) -> None:
        self._toolbox = toolbox

    async def list_tools(self, ctx: Any, params: PaginatedRequestParams | None) -> ListToolsResult:  # noqa: ARG002 called by the SDK
        """Returns the tools that the request's key may use."""
        tools = await self._toolbox.listed(_guest(ctx))
        return ListToolsResult(tools=[ListedTool.model_validate(tool.as_json()) for tool in tools])

    async def call_tool(self, ctx: Any, params: CallToolRequestParams) -> CallToolResult:
        """Returns what the tool answers, its failure included.

        Raises:
            MCPError: there is no such tool.
        """
        try:
            answer = await self._toolbox.call(_guest(ctx), params.name, params.arguments or {})
        except KeyError as error:
            raise MCPError(code=INVALID_PARAMS, message="there is no such tool") from error
        except ToolFailure as failure:
            return _failed(failure.message, dict(failure.content))
        except BulkheadError as error:
            return _refused(error)
        except Exception:  # noqa: BLE001 logged whole; the caller learns an id
            return _unexpected()
        return _answered(answer)


def _guest(ctx: Any) -> Guest:
    guest: Guest = ctx.request.scope[GUEST]
    return guest


def _answered(answer: ToolAnswer) -> CallToolResult:
    content = dict(answer.content)
    return CallToolResult(
        content=[TextContent(text=text) for text in (_json(content), *answer.notes)],
        structured_content=content,
    )


def _failed(message: str, content: dict[str, Any]) -> CallToolResult:
    return CallToolResult(
        content=[TextContent(text=message)], structured_content=content, is_error=True
    )


def _refused(error: BulkheadError) -> CallToolResult:
    content: dict[str, Any] = {"reason": error.reason.value}
    message = error.message
    if error.retry_after is not None:
        content["retry_after"] = error.retry_after.total_seconds()
        message = f"{message}; try again in {error.retry_after.total_seconds():g} s"
    return _failed(message, content)


def _unexpected() -> CallToolResult:
    error_id = secrets.token_hex(8)
    structlog.get_logger().exception("tool failed", error_id=error_id)
    return _failed(f"internal error {error_id}", {"reason": "INTERNAL", "error_id": error_id})


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
