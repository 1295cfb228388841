"""Asking whoever is at the terminal whether they mean it."""

import sys

import typer


def ask_at_terminal(question: str) -> None:
    """Asks, where somebody is there to answer; scripts are not asked.

    Raises:
        typer.Abort: the answer was no.
    """
    if sys.stdin.isatty():
        typer.confirm(question, abort=True, err=True)
