"""Secrets that a command is given: from a file, from standard input or typed, never as arguments.

Other programs read arguments, and logs and shells keep them.
"""

import sys
from getpass import getpass
from pathlib import Path

import typer

STANDARD_INPUT = "-"


def secret(source: str, what: str, option: str) -> str:
    """Returns the secret in the file `source`, or of standard input for `-`.

    At a terminal it is asked for, and not shown while it is typed. White space around it is not
    part of it.

    Args:
        source: a path, or `-`.
        what: what it is called, as `Token`.
        option: that named the source.

    Raises:
        typer.BadParameter: nothing can be read there, or what is there is empty.
    """
    return _checked(_read(source, what, option).strip(), source, option)


def content(source: str, what: str, option: str) -> str:
    """Returns the same as it is, white space too, but for one line break at its end.

    Raises:
        typer.BadParameter: as `secret`.
    """
    return _checked(_read(source, what, option).removesuffix("\n"), source, option)


def file_text(file: Path, what: str) -> str:
    """Returns the text of a file that holds a secret.

    Raises:
        typer.BadParameter: it cannot be read.
    """
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"cannot read {what} {file}: {_why(error)}") from None


def _read(source: str, what: str, option: str) -> str:
    if source != STANDARD_INPUT:
        return file_text(Path(source), f"the file of {option}")
    if sys.stdin.isatty():
        return getpass(f"{what} (not shown): ")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{option}: cannot read standard input: {_why(error)}") from None


def _checked(text: str, source: str, option: str) -> str:
    if not text:
        where = "standard input" if source == STANDARD_INPUT else f"the file {source}"
        raise typer.BadParameter(f"{option}: there is nothing in {where}")
    return text


def _why(error: OSError | UnicodeDecodeError) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else "it is not text"
