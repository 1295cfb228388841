"""Postgres values as JSON, and JSON values as Postgres parameters.

Both ways through Postgres's own text form: what JSON cannot say exactly (a numeric, a timestamp, an
interval) is the string that Postgres writes and reads, so nothing is rounded, and what comes out
can be put in again.
"""

import json
import math
from collections.abc import Callable
from typing import Any

# Beyond this a JSON number is not exact for every reader (RFC 8259, 6).
_MOST_EXACT = 2**53 - 1

Encode = Callable[[Any], str]
Decode = Callable[[str], Any]


def as_text(value: Any) -> str:
    """Returns the text form of a scalar parameter."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(value)


def as_number(value: Any) -> str:
    """Returns the text form of a number, given as a number or as a string.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("a number is expected, or a string that holds one")  # noqa: TRY004 the driver passes a ValueError on
    return value if isinstance(value, str) else repr(value)


def as_integer(value: Any) -> str:
    """Returns the text form of a whole number, given as a number or as a string.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return as_number(value)


def as_string(value: Any) -> str:
    """Returns a value that JSON has no type for, given as a string.

    Raises:
        ValueError: it is no string.
    """
    if not isinstance(value, str):
        raise ValueError("a string is expected")  # noqa: TRY004 the driver passes a ValueError on
    return value


def as_json(value: Any) -> str:
    """Returns a parameter of type json: any JSON value, or a string that holds an object or array.

    A string that holds anything else is a JSON string.
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return json.dumps(value)
        return value
    return json.dumps(value)


def exact_integer(text: str) -> int | str:
    """Returns an integer that JSON can say exactly; otherwise its digits."""
    # Longer is no exact number anyway, and Python bounds what it converts.
    if len(text) > 17:  # noqa: PLR2004 sign and digits of the largest exact number
        return text
    value = int(text)
    return value if -_MOST_EXACT <= value <= _MOST_EXACT else text


def finite_float(text: str) -> float | str:
    """Returns a float that JSON can say; otherwise `NaN`, `Infinity` or `-Infinity`."""
    value = float(text)
    return value if math.isfinite(value) else text


def json_value(text: str) -> Any:
    """Returns the JSON value in `text`; what is too deep for us stays text."""
    try:
        return json.loads(text, parse_int=exact_integer, parse_float=finite_float)
    except (ValueError, RecursionError):
        return text


def iso_timestamp(text: str) -> str:
    """Returns Postgres's `2024-05-01 12:00:00+00` as ISO 8601; infinity and BC stay as they are."""
    date, space, time = text.partition(" ")
    if not space or " " in time:
        return text
    if len(time) > 3 and time[-3] in "+-":  # noqa: PLR2004 an offset of whole hours
        time += ":00"
    return f"{date}T{time}"


def truth(text: str) -> bool:
    """Returns Postgres's `t` or `f` as a truth value."""
    return text == "t"


def json_safe(value: Any) -> Any:
    """Returns what the driver made of a column's value as a value that JSON can say."""
    match value:
        case None | bool() | str() | dict():
            return value
        case int():
            return value if -_MOST_EXACT <= value <= _MOST_EXACT else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case list() | tuple():
            return [json_safe(item) for item in value]
        case _:
            return str(value)


async def install_codecs(connection: Any) -> None:
    """Makes `connection` speak of the types below as this module does."""
    for names, encode, decode in _CODECS:
        for name in names.split():
            await connection.set_type_codec(
                name, schema="pg_catalog", encoder=encode, decoder=decode, format="text"
            )


_CODECS: tuple[tuple[str, Encode, Decode], ...] = (
    ("bool", as_text, truth),
    ("int2 int4 int8 oid", as_integer, exact_integer),
    ("float4 float8", as_number, finite_float),
    ("numeric", as_number, str),
    ("text varchar bpchar", as_text, str),
    ("timestamp timestamptz", as_string, iso_timestamp),
    ("date time timetz interval uuid bytea inet cidr bit varbit", as_string, str),
    ("point line lseg box path polygon circle", as_string, str),
    ("json jsonb", as_json, json_value),
)
