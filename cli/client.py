"""The commands that talk to a running stack."""

import typer

from cli import audit, deployments, keys, tenants, usage


def register(app: typer.Typer) -> None:
    """Adds the client's commands to the command line, in the order of a first day with them."""
    for commands in (tenants, deployments, keys, usage, audit):
        commands.register(app)
