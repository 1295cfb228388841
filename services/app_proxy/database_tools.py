"""The tools over a deployment's own database."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol

from services.app_proxy.database.catalogue import Catalogue
from services.app_proxy.database.executor import Executor, Owner
from services.app_proxy.database.failures import Failure, StatementError
from services.app_proxy.database.results import Result
from services.app_proxy.door import Guest
from services.app_proxy.tool_schemas import (
    DESCRIBE_TABLE_INPUT,
    DESCRIBE_TABLE_OUTPUT,
    EXECUTE_OUTPUT,
    LIST_TABLES_INPUT,
    LIST_TABLES_OUTPUT,
    QUERY_OUTPUT,
    SQL_INPUT,
)
from services.app_proxy.tools import Arguments, Tool, ToolAnswer, ToolFailure

_READ = "db:read"
_WRITE = "db:write"


class _Run(Protocol):
    async def __call__(self, owner: Owner, sql: str, params: Sequence[Any]) -> Result: ...


class DatabaseTools:
    """`list_tables`, `describe_table`, `query`, `execute`: the same for every deployment."""

    def __init__(self, executor: Executor, catalogue: Catalogue) -> None:
        self._executor = executor
        self._catalogue = catalogue

    async def tools(self, guest: Guest) -> Sequence[Tool]:  # noqa: ARG002 the same for all
        """Returns the four tools."""
        return [self._list_tables(), self._describe_table(), self._query(), self._execute()]

    def _list_tables(self) -> Tool:
        return Tool(
            name="list_tables",
            title="List tables",
            description="Lists the tables and views, with their comments and estimated rows.",
            scope=_READ,
            input_schema=LIST_TABLES_INPUT,
            output_schema=LIST_TABLES_OUTPUT,
            run=self._run_list_tables,
        )

    def _describe_table(self) -> Tool:
        return Tool(
            name="describe_table",
            title="Describe a table",
            description="Describes a table: columns, types, keys, indexes and comments.",
            scope=_READ,
            input_schema=DESCRIBE_TABLE_INPUT,
            output_schema=DESCRIBE_TABLE_OUTPUT,
            run=self._run_describe_table,
        )

    def _query(self) -> Tool:
        return Tool(
            name="query",
            title="Query",
            description="Runs one SQL statement that reads, in a read-only transaction.",
            scope=_READ,
            input_schema=SQL_INPUT,
            output_schema=QUERY_OUTPUT,
            run=self._run_query,
        )

    def _execute(self) -> Tool:
        return Tool(
            name="execute",
            title="Execute",
            description="Runs one SQL statement that may change data or tables, and commits it.",
            scope=_WRITE,
            input_schema=SQL_INPUT,
            output_schema=EXECUTE_OUTPUT,
            run=self._run_execute,
            changes=True,
        )

    async def _run_list_tables(self, guest: Guest, arguments: Arguments) -> ToolAnswer:
        _only(arguments)
        try:
            tables, cut = await self._catalogue.tables(owner_of(guest))
        except StatementError as error:
            raise failed(error.failure) from error
        return ToolAnswer({"tables": [asdict(table) for table in tables], "truncated": cut})

    async def _run_describe_table(self, guest: Guest, arguments: Arguments) -> ToolAnswer:
        _only(arguments, "table", "schema")
        name, schema = _text(arguments, "table"), arguments.get("schema")
        if schema is not None and not isinstance(schema, str):
            raise _wrong("schema", "must be a string")
        try:
            table = await self._catalogue.table(owner_of(guest), name, schema)
        except StatementError as error:
            raise failed(error.failure) from error
        if table is None:
            raise failed(Failure("42P01", "there is no such table", hint="see list_tables"))
        return ToolAnswer(table.as_json())

    async def _run_query(self, guest: Guest, arguments: Arguments) -> ToolAnswer:
        return await self._run_sql(self._executor.query, guest, arguments)

    async def _run_execute(self, guest: Guest, arguments: Arguments) -> ToolAnswer:
        return await self._run_sql(self._executor.execute, guest, arguments)

    async def _run_sql(self, run: _Run, guest: Guest, arguments: Arguments) -> ToolAnswer:
        _only(arguments, "sql", "params")
        params = arguments.get("params")
        if params is not None and not isinstance(params, list):
            raise _wrong("params", "must be an array of values for $1, $2, …")
        try:
            result = await run(owner_of(guest), _text(arguments, "sql"), params or [])
        except StatementError as error:
            raise failed(error.failure) from error
        return _answer(result)


def failed(failure: Failure) -> ToolFailure:
    """Returns a statement's failure as the tool's: SQLSTATE, message and what helps."""
    details = {name: value for name, value in asdict(failure).items() if value is not None}
    lines = [f"ERROR {failure.code}: {failure.message}"]
    shown = (name for name in ("position", "detail", "hint") if name in details)
    lines += [f"{name}: {details[name]}" for name in shown]
    details["sqlstate"] = details.pop("code")
    return ToolFailure("\n".join(lines), {"error": details})


def owner_of(guest: Guest) -> Owner:
    """Returns whose database the guest works with."""
    # The route's deployment and the key's are the same: the door compared them.
    return Owner(guest.route.deployment_id, guest.key, guest.route.database_generation)


def _answer(result: Result) -> ToolAnswer:
    content: dict[str, Any] = {
        "columns": [asdict(column) for column in result.columns],
        "rows": list(result.rows),
        "row_count": len(result.rows),
        "truncated": result.cut is not None,
    }
    if result.cut is not None:
        content["truncated_reason"] = result.cut
    if result.affected is not None:
        content["affected"] = result.affected
    if result.tag is not None:
        content["command"] = result.tag
    return ToolAnswer(content, [f"TRUNCATED: {result.cut}"] if result.cut is not None else [])


def _only(arguments: Arguments, *names: str) -> None:
    unknown = sorted(set(arguments) - set(names))
    if unknown:
        raise _wrong(unknown[0][:100], "is not an argument of this tool")


def _text(arguments: Arguments, name: str) -> str:
    value = arguments.get(name)
    if not isinstance(value, str) or not value:
        raise _wrong(name, "is needed, a string that is not empty")
    return value


def _wrong(name: str, description: str) -> ToolFailure:
    return ToolFailure(f"{name}: {description}", {"reason": "FIELD_INVALID", "field": name})
