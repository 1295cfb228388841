"""Files that only their owner can read."""

import os
import tempfile
from pathlib import Path

import typer


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all.

    Raises:
        typer.BadParameter: it cannot be written there.
    """
    try:
        # Made with mode 0600, under a name of its own until it is whole.
        descriptor, part = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        Path(part).replace(file)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {file}: {error.strerror}") from error
