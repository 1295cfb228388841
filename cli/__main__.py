"""The `bulkhead` command."""

import typer

from cli import client, stack


def build() -> typer.Typer:
    """Returns the whole command line."""
    app = typer.Typer(
        name="bulkhead",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        help="Runs Bulkhead on this machine, and talks to it wherever it runs.",
        epilog=client.TOUR,
    )
    stack.register(app)
    client.register(app)
    return app


def main() -> None:
    """Exits with 0 when done, 1 when refused, 2 on wrong use."""
    build()()


if __name__ == "__main__":
    main()
