"""The whole command line of `bulkhead`."""

from typing import Annotated

import typer

from cli import client, stack
from cli.wrong_use import Commands

_PACKAGE = "bulkhead"


def build() -> typer.Typer:
    """Returns the whole command line."""
    app = typer.Typer(
        name="bulkhead",
        cls=Commands,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Runs Bulkhead on this machine, and talks to it wherever it runs.",
        epilog=client.TOUR,
    )
    app.callback()(_options)
    stack.register(app)
    client.register(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        # Nobody else needs it, and it takes a tenth of a command's time.
        from importlib.metadata import version  # noqa: PLC0415

        print(f"{_PACKAGE} {version(_PACKAGE)}")
        raise typer.Exit


def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Runs Bulkhead on this machine, and talks to it wherever it runs."""
