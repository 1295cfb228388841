"""`llms.txt` and the tool manifest, made from the live schema of one deployment (P-06).

Names and comments in a schema are a tenant's own text: here they are quoted and cut, so that none
of them can pose as a heading, a link or an instruction of ours.
"""

import re
from collections.abc import Sequence
from typing import Any

from services.app_proxy.schema import ColumnInfo, Schema, Table, TableSummary
from services.app_proxy.tools import Tool

_MOST_NAME = 80
_MOST_TYPE = 80
_MOST_COMMENT = 200
_BREAKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_MARKS = re.compile(r"([\\`*_{}\[\]<>()#+\-.!|~])")
_TICKS = re.compile(r"`+")

INSTRUCTIONS = (
    "One Postgres database of your own. `/llms.txt` on this host describes its tables (present the"
    " same key); `list_tables` and `describe_table` tell the same. Read with `query`, change with"
    " `execute`. Pass values as `params` ($1, $2, …), never inside the SQL."
)


def llms_txt(name: str, schema: Schema, tools: Sequence[Tool]) -> str:
    """Returns the deployment's `llms.txt` (llmstxt.org): a title, a summary, then lists."""
    lines = [
        f"# {plain(name, _MOST_NAME)}",
        "",
        "> A Postgres database that agents use over MCP (Streamable HTTP) at `/mcp` on this host.",
        "",
        "Every request carries `Authorization: Bearer <key>`, a key of this deployment.",
        "",
        "## Endpoints",
        "",
        "- [MCP](/mcp): Streamable HTTP; POST only",
        "- [Manifest](/manifest.json): the tools and the whole schema as JSON",
        "",
        "## Tools",
        "",
        *(f"- {code(tool.name, _MOST_NAME)}: {tool.description}" for tool in tools),
        "",
        "## Tables",
        "",
        *(line for table in schema.tables for line in _table_lines(table)),
    ]
    if not schema.tables:
        lines.append("There are no tables yet.")
    if schema.cut:
        lines.append("There are more tables; `list_tables` and `describe_table` show them.")
    return "\n".join(lines) + "\n"


def manifest(name: str, schema: Schema, tools: Sequence[Tool]) -> dict[str, Any]:
    """Returns the deployment's manifest: how to call it, its tools, its schema."""
    return {
        "name": name,
        "protocol": "mcp",
        "transport": "streamable-http",
        "endpoint": "/mcp",
        "documentation": "/llms.txt",
        "authentication": {"scheme": "bearer"},
        "tools": [tool.as_json() for tool in tools],
        "schema": {
            "fingerprint": schema.fingerprint,
            "truncated": schema.cut,
            "tables": [table.as_json() for table in schema.tables],
        },
    }


def plain(text: str, most: int) -> str:
    """Returns `text` on one line, cut, with every mark of Markdown escaped."""
    return _MARKS.sub(r"\\\1", _one_line(text, most))


def code(text: str, most: int) -> str:
    """Returns `text` on one line, cut, as a code span that it cannot end (CommonMark, 6.1)."""
    line = _one_line(text, most)
    fence = "`" * (max((len(run) for run in _TICKS.findall(line)), default=0) + 1)
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def _one_line(text: str, most: int) -> str:
    line = _BREAKS.sub(" ", text).strip()
    return line if len(line) <= most else line[: most - 1] + "…"


def _table_lines(table: Table) -> list[str]:
    summary = table.summary
    lines = [f"- {_table_name(summary)} ({summary.kind}){_comment(summary.comment)}"]
    primary = {column for key in table.keys if key.kind == "primary" for column in key.columns}
    lines += [_column_line(column, column.name in primary) for column in table.columns]
    lines += [
        f"  - references: {code(key.definition, _MOST_COMMENT)}"
        for key in table.keys
        if key.kind == "foreign"
    ]
    return lines


def _table_name(summary: TableSummary) -> str:
    name = summary.name if summary.schema == "public" else f"{summary.schema}.{summary.name}"
    return code(name, _MOST_NAME * 2)


def _column_line(column: ColumnInfo, primary: bool) -> str:
    traits = [code(column.type, _MOST_TYPE)]
    traits += ["primary key"] if primary else []
    traits += [] if column.nullable or primary else ["not null"]
    name = code(column.name, _MOST_NAME)
    return f"  - {name}: {', '.join(traits)}{_comment(column.comment)}"


def _comment(comment: str | None) -> str:
    return f" — {plain(comment, _MOST_COMMENT)}" if comment and comment.strip() else ""
