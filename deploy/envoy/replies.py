"""What the front door itself answers: problems as RFC 9457 words them, and nothing of its insides.

Answers that come from a service pass untouched.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CONTENT_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1
_ACCESS_LOG_CEL = "type.googleapis.com/envoy.extensions.access_loggers.filters.cel.v3"


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal by the front door."""

    status: int
    reason: str
    title: str
    detail: str
    retry: bool = False

    @property
    def body(self) -> dict[str, object]:
        """The problem as RFC 9457 has it, with our reason beside."""
        return {
            "type": f"urn:bulkhead:error:{self.reason}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "reason": self.reason,
        }


AWAY = Problem(
    503,
    "DEPENDENCY_UNAVAILABLE",
    "Service Unavailable",
    "a service that is needed is away; nothing was done",
    retry=True,
)
TOO_LATE = Problem(
    504, "DEPENDENCY_UNAVAILABLE", "Gateway Timeout", "the answer took too long", retry=True
)
UNKNOWN = Problem(404, "RESOURCE_NOT_FOUND", "Not Found", "no such host or path")
TOO_LARGE = Problem(413, "FIELD_INVALID", "Content Too Large", "the request body is too large")
HEADERS_TOO_LARGE = Problem(
    431, "FIELD_INVALID", "Request Header Fields Too Large", "the request headers are too large"
)
MALFORMED = Problem(400, "FIELD_INVALID", "Bad Request", "the request is malformed")
TOO_SLOW = Problem(408, "DEADLINE_TOO_SHORT", "Request Timeout", "the request came too slowly")


def local_replies() -> dict[str, Any]:
    """Returns Envoy's `local_reply_config`: the first mapper that matches decides."""
    problems = (AWAY, TOO_LATE, UNKNOWN, TOO_LARGE, HEADERS_TOO_LARGE, MALFORMED, TOO_SLOW)
    return {
        "mappers": [
            # gRPC has its own words for these: Envoy turns the HTTP status into a gRPC one.
            {"filter": _is_grpc()},
            # A refusal by app_proxy is app_proxy's answer.
            {"filter": _when("response.code_details == 'ext_authz_denied'")},
            *(_mapper(_is_status(problem.status), problem) for problem in problems),
        ]
    }


def _mapper(condition: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    mapper: dict[str, Any] = {
        "filter": condition,
        "body_format_override": {"json_format": problem.body, "content_type": CONTENT_TYPE},
    }
    if problem.retry:
        header = {"key": "retry-after", "value": str(RETRY_AFTER_SECONDS)}
        mapper["headers_to_add"] = [
            {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        ]
    return mapper


def _is_grpc() -> dict[str, Any]:
    match = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    return {"header_filter": {"header": match}}


def _is_status(status: int) -> dict[str, Any]:
    value = {"default_value": status, "runtime_key": f"bulkhead.reply_{status}"}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}


def _when(expression: str) -> dict[str, Any]:
    return {
        "extension_filter": {
            "name": "envoy.access_loggers.extension_filters.cel",
            "typed_config": {
                "@type": f"{_ACCESS_LOG_CEL}.ExpressionFilter",
                "expression": expression,
            },
        }
    }
