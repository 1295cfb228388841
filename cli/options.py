"""Options that every client command takes."""

from pathlib import Path
from typing import Annotated

import typer

_PANEL = "Where and as whom"

Api = Annotated[
    str,
    typer.Option(
        "--api",
        envvar="BULKHEAD_API",
        metavar="HOST:PORT",
        help="Address of the API, as printed by `bulkhead up`.",
        rich_help_panel=_PANEL,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key-file",
        metavar="FILE",
        help="Read the key from this file; without it the key is taken from BULKHEAD_KEY.",
        rich_help_panel=_PANEL,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.1,
        metavar="SECONDS",
        help="How long one call may take.",
        rich_help_panel=_PANEL,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document with the field names of the contract; "
        'a refusal prints {"error": …}.',
    ),
]
RequestId = Annotated[
    str,
    typer.Option(
        "--request-id",
        metavar="ID",
        help="Repeat with the same id and nothing is created twice; a key that was not used yet "
        "gets a fresh secret. \\[default: a new one]",
        show_default=False,
    ),
]
WorkRequestId = Annotated[
    str,
    typer.Option(
        "--request-id",
        metavar="ID",
        help="Repeat with the same id, and it is done once. \\[default: a new one]",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, metavar="N", help="Stop after N; without it, list all."),
]
NoWait = Annotated[
    bool,
    typer.Option("--no-wait", help="Return at once; the work goes on in the operation."),
]
WaitSeconds = Annotated[
    float,
    typer.Option("--wait-seconds", min=0.1, metavar="SECONDS", help="How long to wait at most."),
]

CALL_SECONDS = 10.0
WAIT_SECONDS = 120.0
