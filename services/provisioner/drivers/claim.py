"""Whose servers a folder holds, so that no provisioner clears away another's."""

import os
from pathlib import Path

from services.provisioner.drivers.server_command import ServerError

_MARK_NAME = ".installation"


def claim(home: Path, mark: str) -> None:
    """Returns when the folder is ours; the first one to claim it keeps it.

    Raises:
        ServerError: it is another installation's.
    """
    file = home / _MARK_NAME
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if file.read_text() != mark:
            raise ServerError(f"{home}: these servers belong to another provisioner") from None
        return
    with os.fdopen(descriptor, "w") as opened:
        opened.write(mark)
