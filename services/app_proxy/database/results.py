"""What a statement returned, cut to what a caller can use."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.app_proxy.database.allowance import TooMuchError
from services.app_proxy.database.codecs import Sayable

_FIRST_BATCH = 8
# Rows after which whoever waits for the event loop gets it.
_MOST_BATCH = 100


@dataclass(frozen=True, slots=True)
class Caps:
    """How much of a result is handed out, and how long a statement may take."""

    rows: int
    # Of the rows as JSON.
    size: int
    # Of what Postgres may send for one statement; beyond it the connection is cut.
    wire: int
    seconds: float
    # Values in the rows: columns, elements of arrays, parts of json.
    values: int = 20_000
    # Seconds of the processor, in which every other deployment waits.
    work_seconds: float = 0.1

    @property
    def row_bytes(self) -> int:
        """Of the rows as Postgres sends them; what is beyond is thrown away undecoded."""
        return 2 * self.size


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
    _sayable: Sayable = field(init=False)

    def __post_init__(self) -> None:
        """Begins with all values to take."""
        self._sayable = Sayable(self.caps.values)

    def add(self, values: Iterable[Any]) -> bool:
        """Takes one more row; returns False once a cap is reached and the row was left out."""
        if self.cut is not None:
            return False
        if len(self.rows) >= self.caps.rows:
            self.cut = f"only the first {self.caps.rows} rows are returned"
            return False
        room = self.caps.size - self._size
        try:
            said = [self._sayable.value(value, room) for value in values]
        except TooMuchError as error:
            self.stop(str(error))
            return False
        row = dict(zip(self.names, said, strict=True))
        size = len(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"))
        if size > room:
            self.stop(f"one more would exceed {self.caps.size} bytes")
            return False
        self._size += size
        self.rows.append(row)
        return True

    def stop(self, why: str) -> None:
        """Takes no more rows."""
        if self.cut is None:
            self.cut = f"only the first {len(self.rows)} rows are returned: {why}"

    def next_batch(self) -> int:
        """Returns how many rows to ask for next: few until their size is known."""
        valued = self._sayable.left // max(1, len(self.names)) + 1
        left = self.caps.rows - len(self.rows) + 1
        if not self.rows:
            return max(1, min(_FIRST_BATCH, left, valued))
        each = max(1, self._size // len(self.rows))
        fit = (self.caps.size - self._size) // each + 1
        return max(1, min(fit, left, valued, len(self.rows) * 8, _MOST_BATCH))


def unique_names(names: Iterable[str]) -> list[str]:
    """Returns the names, a repeated one with `_2`, `_3` … after it: JSON keys must differ."""
    seen: set[str] = set()
    # The number that a repeated name got last, so that none is tried twice.
    numbers: dict[str, int] = {}
    unique = []
    for name in names:
        candidate = name
        while candidate in seen:
            numbers[name] = numbers.get(name, 1) + 1
            candidate = f"{name}_{numbers[name]}"
        seen.add(candidate)
        unique.append(candidate)
    return unique
