"""The commands `bulkhead up`, `down` and `status`: the embedded stack on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from cli.panels import MACHINE

State = Annotated[
    Path,
    typer.Option("--state", metavar="DIR", help="The folder that holds everything of the stack."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Detach = Annotated[
    bool, typer.Option("--detach", "-d", help="Return once it is healthy; it goes on by itself.")
]
Otlp = Annotated[
    str,
    typer.Option(
        metavar="HOST:PORT", help="Send traces and metrics to this receiver of OTLP over gRPC."
    ),
]
EdgePort = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=65535,
        metavar="N",
        help="Where the front door listens. \\[default: a free port, kept from then on]",
        show_default=False,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SERVICE.SETTING=VALUE",
        help="A setting of one service, as `ratelimit.BURST_FREE=5`; may be repeated.",
        show_default=False,
    ),
]
Unchecked = Annotated[bool, typer.Option("--unchecked", hidden=True)]
Purge = Annotated[bool, typer.Option("--purge", help="Also remove the state and every database.")]

_DEFAULT_STATE = Path(".bulkhead")
_UP_EXAMPLES = """Examples:

bulkhead up

bulkhead up --detach --json | jq -r .api

bulkhead up --edge-port 8080 --set ratelimit.BURST_FREE=5"""
_DOWN_EXAMPLES = """Examples:

bulkhead down

bulkhead down --state /tmp/trial --purge"""
_STATUS_EXAMPLES = """Examples:

bulkhead status

bulkhead status --json | jq '.servers[].data_directory'"""


def register(app: typer.Typer) -> None:
    """Adds the commands to the command line."""
    app.command("up", epilog=_UP_EXAMPLES, rich_help_panel=MACHINE)(up)
    app.command("down", epilog=_DOWN_EXAMPLES, rich_help_panel=MACHINE)(down)
    app.command("status", epilog=_STATUS_EXAMPLES, rich_help_panel=MACHINE)(status)


def up(
    state: State = _DEFAULT_STATE,
    detach: Detach = False,
    as_json: Json = False,
    otlp: Otlp = "",
    edge_port: EdgePort = None,
    settings: Set = None,
    unchecked: Unchecked = False,
) -> None:
    """Start the stack on this machine: Postgres, Valkey, the services and the front door.

    Without --detach it stays until Ctrl-C, which ends everything. Starting what
    runs already is fine: the addresses are printed again.
    """
    from cli import embedded  # noqa: PLC0415 the client's commands do not wait for it

    options = embedded.options_of(otlp, edge_port, settings or (), unchecked=unchecked)
    embedded.up(state, options, detach=detach, as_json=as_json)


def down(state: State = _DEFAULT_STATE, purge: Purge = False, as_json: Json = False) -> None:
    """End every process of the stack, those of deployments too; data stays unless purged."""
    from cli import embedded  # noqa: PLC0415 the client's commands do not wait for it

    embedded.down(state, purge=purge, as_json=as_json)


def status(state: State = _DEFAULT_STATE, as_json: Json = False) -> None:
    """Show every process of the stack, and the Postgres server of every deployment.

    Exits with 1 when the stack does not run, or something in it is not well.
    """
    from cli import embedded  # noqa: PLC0415 the client's commands do not wait for it

    embedded.status(state, as_json=as_json)
