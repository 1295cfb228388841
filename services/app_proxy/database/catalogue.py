"""The schema of a deployment's database, read from Postgres's own catalogues as its reader."""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from services.app_proxy.database.catalogue_queries import (
    ALL_TABLES,
    COLUMNS,
    FINGERPRINT,
    INDEXES,
    KEYS,
    ONE_TABLE,
)
from services.app_proxy.database.executor import Executor, Owner
from services.app_proxy.schema import ColumnInfo, Index, Key, Schema, Table, TableSummary
from services.shared.ids import DeploymentId

if TYPE_CHECKING:
    from services.app_proxy.database.sessions import Connection

_MOST_REMEMBERED = 256
_MOST_TABLES = 500


class Catalogue:
    """Reads schemas. A whole one is remembered as long as its fingerprint stays the same (P-06)."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._schemas: OrderedDict[DeploymentId, Schema] = OrderedDict()

    async def tables(self, owner: Owner) -> tuple[Sequence[TableSummary], bool]:
        """Returns the tables that the reader may see, and whether there are more."""
        async with self._executor.reading(owner) as connection:
            rows = await connection.fetch(ALL_TABLES, _MOST_TABLES + 1)
        return [_summary(row) for row in rows[:_MOST_TABLES]], len(rows) > _MOST_TABLES

    async def table(self, owner: Owner, name: str, schema: str | None) -> Table | None:
        """Returns one table, of the schema `public` when several have its name."""
        async with self._executor.reading(owner) as connection:
            rows = await connection.fetch(ONE_TABLE, name, schema)
            tables = await _described(connection, rows)
        return tables[0] if tables else None

    async def schema(self, owner: Owner) -> Schema:
        """Returns the whole schema as it is now."""
        async with self._executor.reading(owner) as connection:
            fingerprint: str = await connection.fetchval(FINGERPRINT)
            known = self._schemas.get(owner.deployment_id)
            if known is not None and known.fingerprint == fingerprint:
                self._schemas.move_to_end(owner.deployment_id)
                return known
            rows = await connection.fetch(ALL_TABLES, _MOST_TABLES + 1)
            tables = await _described(connection, rows[:_MOST_TABLES])
        schema = Schema(fingerprint, tables, cut=len(rows) > _MOST_TABLES)
        self._remember(owner.deployment_id, schema)
        return schema

    def _remember(self, deployment_id: DeploymentId, schema: Schema) -> None:
        self._schemas[deployment_id] = schema
        self._schemas.move_to_end(deployment_id)
        while len(self._schemas) > _MOST_REMEMBERED:
            self._schemas.popitem(last=False)


async def _described(connection: "Connection", rows: Sequence[Any]) -> list[Table]:
    oids = [row["oid"] for row in rows]
    columns = _by_table(await connection.fetch(COLUMNS, oids))
    keys = _by_table(await connection.fetch(KEYS, oids))
    indexes = _by_table(await connection.fetch(INDEXES, oids))
    return [
        Table(
            summary=_summary(row),
            columns=[ColumnInfo(**_fields(each)) for each in columns[row["oid"]]],
            keys=[Key(**_fields(each)) for each in keys[row["oid"]]],
            indexes=[Index(**_fields(each)) for each in indexes[row["oid"]]],
        )
        for row in rows
    ]


def _by_table(rows: Sequence[Any]) -> dict[int, list[Any]]:
    grouped: dict[int, list[Any]] = defaultdict(list)
    for row in rows:
        grouped[row["oid"]].append(row)
    return grouped


def _summary(row: Any) -> TableSummary:
    return TableSummary(**_fields(row))


def _fields(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "oid"}
