"""What a statement returned, cut to what a caller can use."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_FIRST_BATCH = 8


@dataclass(frozen=True, slots=True)
class Caps:
    """How much of a result is handed out, and how long a statement may take."""

    rows: int
    # Of the rows as JSON.
    size: int
    # Of what Postgres may send for one statement; beyond it the connection is cut.
    wire: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a result."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement returned. `affected` counts all rows, also those that were cut."""

    columns: Sequence[Column] = ()
    rows: Sequence[dict[str, Any]] = ()
    # Why rows are missing; None: all are here.
    cut: str | None = None
    # Postgres's command tag, as `INSERT 0 3`; None when the result has columns.
    tag: str | None = None
    affected: int | None = None


@dataclass(slots=True)
class RowsInCaps:
    """Collects rows until a cap is reached."""

    caps: Caps
    names: Sequence[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    cut: str | None = None
    _size: int = 0

    def add(self, values: Iterable[Any]) -> bool:
        """Takes one more row; returns False once a cap is reached and the row was left out."""
        if len(self.rows) >= self.caps.rows:
            self.cut = f"only the first {self.caps.rows} rows are returned"
            return False
        row = dict(zip(self.names, values, strict=True))
        size = len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        if self._size + size > self.caps.size:
            self.cut = (
                f"only the first {len(self.rows)} rows are returned:"
                f" one more would exceed {self.caps.size} bytes"
            )
            return False
        self._size += size
        self.rows.append(row)
        return True

    def next_batch(self) -> int:
        """Returns how many rows to ask for next: few until their size is known."""
        if not self.rows:
            return max(1, min(_FIRST_BATCH, self.caps.wire // self.caps.size, self.caps.rows + 1))
        each = max(1, self._size // len(self.rows))
        fit = (self.caps.size - self._size) // each + 1
        left = self.caps.rows - len(self.rows) + 1
        return max(1, min(fit, left, len(self.rows) * 8, 500))


def unique_names(names: Iterable[str]) -> list[str]:
    """Returns the names, a repeated one with `_2`, `_3` … after it: JSON keys must differ."""
    seen: set[str] = set()
    unique = []
    for name in names:
        candidate, number = name, 1
        while candidate in seen:
            number += 1
            candidate = f"{name}_{number}"
        seen.add(candidate)
        unique.append(candidate)
    return unique
