"""What the front door itself answers: problems as RFC 9457 words them, and nothing of its insides.

Answers that come from a service pass untouched.
"""

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
    "Temporarily unavailable",
    "Something that is needed to serve this request is away.",
    retry=True,
)
TOO_LATE = Problem(
    504, "DEPENDENCY_UNAVAILABLE", "Too slow an answer", "The answer took too long.", retry=True
)
UNKNOWN = Problem(
    404, "RESOURCE_NOT_FOUND", "Unknown host", "Nothing is served at this host and path."
)
TOO_LARGE = Problem(413, "FIELD_INVALID", "Too large", "The body of the request is too large.")
HEADERS_TOO_LARGE = Problem(
    431, "FIELD_INVALID", "Too large", "The headers of the request are too large."
)
TOO_MANY = Problem(
    429, "OVERLOADED", "Too many requests", "Too many requests came from this address.", retry=True
)
MALFORMED = Problem(400, "FIELD_INVALID", "Malformed", "The request is malformed.")
TOO_SLOW = Problem(408, "DEADLINE_TOO_SHORT", "Too slow", "The request came too slowly.")


def local_replies() -> dict[str, Any]:
    """Returns Envoy's `local_reply_config`: the first mapper that matches decides."""
    problems = (
        AWAY,
        TOO_LATE,
        UNKNOWN,
        TOO_LARGE,
        HEADERS_TOO_LARGE,
        TOO_MANY,
        MALFORMED,
        TOO_SLOW,
    )
    return {
        "mappers": [
            # A refusal by app_proxy is app_proxy's answer.
            {"filter": _when("response.code_details == 'ext_authz_denied'")},
            *(_grpc_mapper(problem) for problem in problems),
            {"filter": _is_grpc()},
            *(_mapper(problem) for problem in problems),
        ]
    }


def _grpc_mapper(problem: Problem) -> dict[str, Any]:
    """The body becomes the gRPC status's message; Envoy derives the code from the HTTP status."""
    return {
        "filter": {"and_filter": {"filters": [_is_grpc(), _is_status(problem.status)]}},
        "body_format_override": {"text_format_source": {"inline_string": problem.detail}},
    }


def _mapper(problem: Problem) -> dict[str, Any]:
    mapper: dict[str, Any] = {
        "filter": _is_status(problem.status),
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
