"""Messages as JSON documents, and as aligned text."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.cells import cell_len

_INT64 = frozenset(
    {
        FieldDescriptor.TYPE_INT64,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_SINT64,
        FieldDescriptor.TYPE_FIXED64,
        FieldDescriptor.TYPE_SFIXED64,
    }
)


def document(message: Message) -> dict[str, Any]:
    """Returns the message in proto JSON, with the field names of the contract.

    Fields without presence are always there, unset ones with presence are not. Unlike in proto
    JSON, 64-bit integers are numbers, so that scripts can reckon with them.
    """
    shown: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    _number_integers(message, shown)
    return shown


def _number_integers(message: Message, shown: dict[str, Any]) -> None:
    for name, value in shown.items():
        descriptor = message.DESCRIPTOR.fields_by_name[name]
        within = descriptor.message_type
        if descriptor.type in _INT64:
            shown[name] = [int(one) for one in value] if isinstance(value, list) else int(value)
        elif within is not None and not within.GetOptions().map_entry:
            _number_within(getattr(message, name), value)


def _number_within(within: Any, shown: Any) -> None:
    if isinstance(shown, list):
        for message, item in zip(within, shown, strict=True):
            _number_within(message, item)
    # Timestamps and their like are strings in JSON and hold nothing to number.
    elif isinstance(shown, dict):
        _number_integers(within, shown)


def as_json(shown: Mapping[str, Any]) -> str:
    """Returns the document as indented JSON."""
    return json.dumps(shown, indent=2, ensure_ascii=False)


def fields(pairs: Mapping[str, object]) -> str:
    """Returns one `name  value` line per pair, values aligned; empty values are left out."""
    shown = [(name, str(value)) for name, value in pairs.items() if value not in ("", None)]
    width = max((len(name) for name, _ in shown), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in shown)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the rows under their header, columns aligned and never cut: ids get copied."""
    lines = [tuple(name.upper() for name in header), *rows]
    widths = [max(cell_len(line[at]) for line in lines) for at in range(len(header))]
    return "\n".join(_line(line, widths) for line in lines)


def table_width(header: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Returns how many columns of a terminal the table takes."""
    return max(cell_len(line) for line in table(header, rows).splitlines())


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell + " " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)
    )
    return "  ".join(padded).rstrip()


def time_text(time: Timestamp) -> str:
    """Returns the time in UTC to the second, as `2026-11-22 12:00:00Z`."""
    return time.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")


def minute_text(time: Timestamp) -> str:
    """Returns the time in UTC to the minute, as `2026-11-22 12:00Z`."""
    return time.ToDatetime().strftime("%Y-%m-%d %H:%MZ")


def enum_text(name: str, prefix: str) -> str:
    """Returns an enum value's name as people write it: `PLAN_FREE` without `PLAN_` is `free`."""
    return name.removeprefix(prefix).replace("_", " ").lower()
