"""What a deployment's database holds, as far as its reader may see it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """One column of a table."""

    name: str
    type: str
    nullable: bool
    default: str | None
    # "always" or "by default" for an identity, "stored" for a generated column.
    generated: str | None
    comment: str | None


@dataclass(frozen=True, slots=True)
class Key:
    """A constraint of a table."""

    name: str
    # "primary", "unique", "foreign", "check", "exclude".
    kind: str
    columns: Sequence[str]
    definition: str


@dataclass(frozen=True, slots=True)
class Index:
    """An index of a table."""

    name: str
    unique: bool
    definition: str


@dataclass(frozen=True, slots=True)
class TableSummary:
    """A table, view, materialized view, foreign or partitioned table."""

    schema: str
    name: str
    kind: str
    comment: str | None
    # As of the last ANALYZE; None when there was none.
    estimated_rows: int | None


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its columns, keys and indexes."""

    summary: TableSummary
    columns: Sequence[ColumnInfo]
    keys: Sequence[Key]
    indexes: Sequence[Index]

    def as_json(self) -> dict[str, Any]:
        """Returns the table as one JSON object."""
        parts = asdict(self)
        summary: dict[str, Any] = parts.pop("summary")
        return summary | parts


@dataclass(frozen=True, slots=True)
class Schema:
    """All tables, or the first of them."""

    # Changes with every change of the schema.
    fingerprint: str
    tables: Sequence[Table]
    # There are more tables than are listed here.
    cut: bool
