"""The list of keys, narrow enough for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from bulkhead.auth.v1 import auth_service_pb2 as pb
from rich.cells import cell_len

from cli.fitting import cut, scopes_text, short_id, terminal_width
from cli.rendering import minute_text, table, table_width, time_text

_WIDTH = 110
_LEAST_NAME_WIDTH = 16
_DATE = 10
_NOTHING = "-"
Columns = Mapping[str, Sequence[str]]


def key_table(keys: Sequence[pb.Key]) -> str:
    """Returns the keys as a table that fits the terminal, or 110 columns; their ids are whole.

    What says nothing of any key is left out, and then what is missed least while there is no room
    for it; the line below the table names that.
    """
    if not keys:
        return "no keys"
    columns = {name: [cell(key) or _NOTHING for key in keys] for name, cell in _CELLS.items()}
    telling = {name: cells for name, cells in columns.items() if set(cells) != {_NOTHING}}
    fitting = _fitting(telling)
    left_out = [name for name in telling if name not in fitting]
    note = [f"no room for: {', '.join(left_out)}; --json has it"] if left_out else []
    return "\n".join([table(*_lines(_with_namescut(fitting))), *note])


def _fitting(columns: Columns) -> dict[str, Sequence[str]]:
    fitting = dict(columns)
    longest = max((cell_len(name) for name in columns.get("name", ())), default=0)
    needed = min(longest, _LEAST_NAME_WIDTH)
    for name in _MISSED_LEAST_FIRST:
        if _room_for_names(fitting) >= needed:
            break
        fitting.pop(name, None)
    return fitting


def _room_for_names(columns: Columns) -> int:
    others = {name: cells for name, cells in columns.items() if name != "name"}
    taken = table_width(*_lines({**others, "": [_NOTHING for _ in columns["key id"]]}))
    return terminal_width(_WIDTH) - taken + 1


def _with_namescut(columns: Columns) -> Columns:
    if "name" not in columns:
        return columns
    room = max(_LEAST_NAME_WIDTH, _room_for_names(columns))
    return {**columns, "name": [cut(name, room) for name in columns["name"]]}


def _lines(columns: Columns) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    return tuple(columns), list(zip(*columns.values(), strict=True))


def _hint(key: pb.Key) -> str:
    """Returns the kind's letter and the last four characters; all keys begin alike before that."""
    return key.hint.partition("_")[2] or key.hint


def _last_used(key: pb.Key) -> str:
    return minute_text(key.last_use_time) if key.HasField("last_use_time") else ""


def _ends(key: pb.Key) -> str:
    if key.HasField("revoke_time"):
        return f"revoked {minute_text(key.revoke_time)}"
    return minute_text(key.expire_time) if key.HasField("expire_time") else ""


def _name(key: pb.Key) -> str:
    return f"support: {key.support_reason}" if key.support_reason else key.name


# Read from left to right.
_CELLS: Mapping[str, Callable[[pb.Key], str]] = MappingProxyType(
    {
        "key id": lambda key: key.key_id,
        "deployment": lambda key: short_id(key.deployment_id),
        "connection": lambda key: short_id(key.connection_id),
        "hint": _hint,
        "scopes": lambda key: scopes_text(key.scopes),
        "created": lambda key: time_text(key.create_time)[:_DATE],
        "last used": _last_used,
        "ends": _ends,
        "successor": lambda key: short_id(key.successor_key_id),
        "name": _name,
    }
)
_MISSED_LEAST_FIRST = ("created", "scopes", "hint", "successor", "connection", "last used")
