"""Postgres values as JSON, and JSON values as Postgres parameters.

Both ways through Postgres's own text form: what JSON cannot say exactly (a numeric, a timestamp, an
interval) is the string that Postgres writes and reads, so nothing is rounded, and what comes out
can be put in again.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.app_proxy.database.allowance import TooMuchError

# Beyond this a JSON number is not exact for every reader (RFC 8259, 6).
_MOST_EXACT = 2**53 - 1

# What the fast parser could make inexact or unsayable: many digits, or an exponent.
_DELICATE = re.compile(r"\d{16}|\d[eE]")

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


@dataclass(frozen=True, slots=True)
class RawJson:
    """A json value as Postgres wrote it: parsed only when it is handed out."""

    text: str


def json_value(text: str) -> Any:
    """Returns the JSON value in `text`; what is too deep for us stays text."""
    try:
        if _DELICATE.search(text) is None:
            return json.loads(text)
        return json.loads(text, parse_int=exact_integer, parse_float=finite_float)
    except (ValueError, RecursionError):
        return text


def json_parts(text: str) -> int:
    """Returns how many values the JSON in `text` holds at most, without parsing it."""
    return 1 + text.count(",") + text.count("[") + text.count("{")


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


class Sayable:
    """Makes what the driver made of columns' values into what JSON can say, within bounds."""

    def __init__(self, values: int) -> None:
        self._left = values

    def value(self, value: Any, most_bytes: int) -> Any:
        """Returns `value` as JSON can say it; json of more than `most_bytes` is not parsed.

        Raises:
            TooMuchError: it is too much, and left out.
        """
        match value:
            case None | bool() | str():
                self._take(1)
                return value
            case RawJson(text):
                self._take(json_parts(text))
                if len(text) > most_bytes:
                    raise TooMuchError("one more would exceed the bytes of a result")
                return json_value(text)
            case list() | tuple():
                self._take(1)
                return [self.value(item, most_bytes) for item in value]
            case _:
                self._take(1)
                return _sayable_scalar(value)

    @property
    def left(self) -> int:
        """How many values may still be said."""
        return self._left

    def _take(self, values: int) -> None:
        self._left -= values
        if self._left < 0:
            raise TooMuchError("a result has no room for more values")


def _sayable_scalar(value: Any) -> Any:
    if isinstance(value, int):
        return value if -_MOST_EXACT <= value <= _MOST_EXACT else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
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
    ("json jsonb", as_json, RawJson),
)
