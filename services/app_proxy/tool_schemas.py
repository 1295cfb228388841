"""JSON Schemas of what the database tools take and return."""

from collections.abc import Mapping
from typing import Any, Final

_TEXT: Final = {"type": "string"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_BOOLEAN: Final = {"type": "boolean"}


def _object(properties: Mapping[str, Any], *required: str) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(required)}


def _list_of(item: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(item)}


_SUMMARY: Final = {
    "schema": _TEXT,
    "name": _TEXT,
    "kind": _TEXT,
    "comment": _TEXT_OR_NULL,
    "estimated_rows": {"type": ["integer", "string", "null"]},
}
_RESULT: Final = {
    "columns": _list_of(_object({"name": _TEXT, "type": _TEXT}, "name", "type")),
    "rows": _list_of({"type": "object"}),
    "row_count": {"type": "integer", "description": "Rows in `rows`."},
    "truncated": {"type": "boolean", "description": "Rows are missing; see truncated_reason."},
    "truncated_reason": _TEXT,
    "affected": {"type": "integer", "description": "Rows read or changed, also those cut."},
    "command": {"type": "string", "description": "Postgres's command tag."},
}
_RESULT_REQUIRED: Final = ("columns", "rows", "row_count", "truncated")

LIST_TABLES_INPUT: Final = _object({}) | {"additionalProperties": False}
LIST_TABLES_OUTPUT: Final = _object(
    {"tables": _list_of(_object(_SUMMARY, "schema", "name", "kind")), "truncated": _BOOLEAN},
    "tables",
    "truncated",
)
DESCRIBE_TABLE_INPUT: Final = _object(
    {
        "table": {"type": "string", "description": "Its name, without the schema."},
        "schema": {"type": ["string", "null"], "description": "Default: public, then any."},
    },
    "table",
) | {"additionalProperties": False}
DESCRIBE_TABLE_OUTPUT: Final = _object(
    _SUMMARY
    | {
        "columns": _list_of({"type": "object"}),
        "keys": _list_of({"type": "object"}),
        "indexes": _list_of({"type": "object"}),
    },
    "schema",
    "name",
    "kind",
    "columns",
    "keys",
    "indexes",
)
SQL_INPUT: Final = _object(
    {
        "sql": {"type": "string", "description": "One statement; values as $1, $2, …"},
        "params": {
            "type": ["array", "null"],
            "items": {},
            "description": (
                "Values for $1, $2, … Timestamps, dates, intervals and numerics as strings in"
                " Postgres's own form or ISO 8601, bytea as \\x and hexadecimal digits, arrays as"
                " arrays, json as any value."
            ),
        },
    },
    "sql",
) | {"additionalProperties": False}
QUERY_OUTPUT: Final = _object(_RESULT, *_RESULT_REQUIRED)
EXECUTE_OUTPUT: Final = QUERY_OUTPUT
