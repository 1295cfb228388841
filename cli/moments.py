"""Times and durations as people write them."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_PART = re.compile(r"(\d{1,6})([smhd])")
_DURATION = re.compile(rf"(?:{_PART.pattern}){{1,4}}")


def duration(text: str) -> Duration:
    """Returns `90s`, `15m`, `1h30m` or `7d`; `0` is none at all.

    Raises:
        typer.BadParameter: it is none of them.
    """
    if text != "0" and _DURATION.fullmatch(text) is None:
        raise typer.BadParameter(f"{text!r} is not a duration; write 90s, 15m, 1h30m or 7d")
    found = Duration()
    found.FromTimedelta(_span(text))
    return found


def _span(text: str) -> timedelta:
    parts = (timedelta(**{_UNITS[unit]: int(number)}) for number, unit in _PART.findall(text))
    return sum(parts, timedelta(0))


def future(text: str, option: str) -> Timestamp:
    """Returns the time that `30d` from now, or `2027-01-31T12:00:00Z`, is.

    Raises:
        typer.BadParameter: it is neither; it names the option.
    """
    return _moment(text, option, 1)


def past(text: str, option: str) -> Timestamp:
    """Returns the time that `30d` ago, or `2027-01-31T12:00:00Z`, is.

    Raises:
        typer.BadParameter: it is neither; it names the option.
    """
    return _moment(text, option, -1)


def _moment(text: str, option: str, direction: int) -> Timestamp:
    try:
        if _DURATION.fullmatch(text):
            at = datetime.now(UTC) + direction * _span(text)
        else:
            at = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{option}: {text!r} is not a time; write 90s, 15m, 12h, 30d, or 2027-01-31T12:00:00Z"
        ) from None
    stamp = Timestamp()
    # A time without a zone is UTC: this machine's zone is nobody's business.
    stamp.FromDatetime(at if at.tzinfo else at.replace(tzinfo=UTC))
    return stamp


Since = Annotated[
    str,
    typer.Option(
        "--since", metavar="TIME", help="From then on: 2h or 7d ago, or 2027-01-31T12:00:00Z."
    ),
]
Until = Annotated[
    str, typer.Option("--until", metavar="TIME", help="Before then; written like --since.")
]
