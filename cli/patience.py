"""How long a database is awake without use, as people write it and read it."""

from datetime import timedelta
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from cli.moments import duration

_NEVER = "never"
_UNITS = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))

IdleTimeout = Annotated[
    str,
    typer.Option(
        "--idle-timeout",
        metavar="DURATION",
        help="Let its database sleep after so long without use: 90s, 10m, up to 7d; or never. "
        "\\[default: as the platform says]",
        show_default=False,
    ),
]


def idle_timeout(text: str) -> Duration | None:
    """Returns the time; zero for `never`, None for nothing.

    Raises:
        typer.BadParameter: it is none of them.
    """
    if not text:
        return None
    if text == _NEVER:
        return Duration()
    try:
        return duration(text)
    except typer.BadParameter:
        raise typer.BadParameter(
            f"--idle-timeout: {text!r} is not a duration; write 90s, 10m, 2h or never"
        ) from None


def idle_text(length: Duration) -> str:
    """Returns `after 10m without use`, or `never`."""
    span = length.ToTimedelta()
    return f"after {span_text(span)} without use" if span else _NEVER


def span_text(length: timedelta) -> str:
    """Returns the length of time as it is written, as `1h30m`; less than a second as it is."""
    left = int(length.total_seconds())
    if not left:
        return f"{length.total_seconds():g}s"
    parts = []
    for unit, seconds in _UNITS:
        count, left = divmod(left, seconds)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts)
