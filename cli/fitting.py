"""Tables that are narrow enough for any terminal."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest

from rich.cells import cell_len, set_cell_size

from cli.rendering import table, table_width

WIDTH = 80
# For what goes into a file or another program: nothing is left out.
ENDLESS = 1 << 16
_GAP = 2
_NOTHING = "-"
_SHORT_ID, _TAIL = 12, 4
_MOST_SCOPES_WIDTH = 18
Columns = Mapping[str, Sequence[str]]


def terminal_width(otherwise: int) -> int:
    """Returns how many columns the terminal has, at least 80; `otherwise` where it is none."""
    if not sys.stdout.isatty():
        return otherwise
    return max(WIDTH, shutil.get_terminal_size().columns)


def fitted(
    columns: Columns,
    wrapped: Mapping[str, int],
    missed_least_first: Sequence[str],
    width: int = WIDTH,
) -> str:
    """Returns a table of at most so many columns of a terminal; a note names what it has not.

    What says nothing in any row is left out. While there is no room, what may be wrapped goes on
    in further lines, between words, and then what is missed least is left out.

    Args:
        columns: the cells below each other, by the column's name.
        wrapped: which columns may be wrapped, the first one first, and how wide they are at least.
        missed_least_first: what may be left out.
        width: how many columns there are.
    """
    telling = {
        name: [cell or _NOTHING for cell in cells] for name, cells in columns.items() if any(cells)
    }
    left = dict(telling)
    for name in missed_least_first:
        if _over(left, _narrowest(left, wrapped), width) <= 0:
            break
        left.pop(name, None)
    gone = [name for name in telling if name not in left]
    note = [f"no room for: {', '.join(gone)}; --json has it"] if gone else []
    return "\n".join([_table(left, _widths(left, wrapped, width)), *note])


def short_id(identifier: str) -> str:
    """Returns the end of an id, by which it is found in its own list."""
    prefix, _, random = identifier.partition("_")
    return identifier if len(identifier) <= _SHORT_ID else f"{prefix}_…{random[-_TAIL:]}"


def cut(text: str, width: int) -> str:
    """Returns the text, or as much of it as fits into the width."""
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def scopes_text(scopes: Sequence[str]) -> str:
    """Returns the scopes, or how many they are; empty for none."""
    every = ",".join(scopes)
    return every if len(every) <= _MOST_SCOPES_WIDTH else f"{len(scopes)} scopes"


def _natural(columns: Columns) -> dict[str, int]:
    return {
        name: table_width((name,), [(cell,) for cell in cells]) for name, cells in columns.items()
    }


def _narrowest(columns: Columns, wrapped: Mapping[str, int]) -> dict[str, int]:
    return {
        name: min(width, max(wrapped[name], len(name))) if name in wrapped else width
        for name, width in _natural(columns).items()
    }


def _over(columns: Columns, widths: Mapping[str, int], room: int) -> int:
    return sum(widths.values()) + _GAP * (len(columns) - 1) - room


def _widths(columns: Columns, wrapped: Mapping[str, int], room: int) -> Mapping[str, int]:
    widths, narrowest = _natural(columns), _narrowest(columns, wrapped)
    for name in wrapped:
        over = _over(columns, widths, room)
        if name in widths and over > 0:
            widths[name] = max(narrowest[name], widths[name] - over)
    return widths


def _table(columns: Columns, widths: Mapping[str, int]) -> str:
    lines: list[Sequence[str]] = []
    for row in zip(*columns.values(), strict=True):
        cells = [_wrapped(cell, width) for cell, width in zip(row, widths.values(), strict=True)]
        lines += zip_longest(*cells, fillvalue="")
    return table(tuple(columns), lines)


def _wrapped(cell: str, width: int) -> Sequence[str]:
    if cell_len(cell) <= width:
        return (cell,)
    parts = textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
    return [cut(part, width) for part in parts]
