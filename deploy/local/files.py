"""Files that hold secrets: made with their final permissions, whole or not at all."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
_SECRET_BYTES = 32


def private_folder(path: Path, mode: int = PRIVATE_FOLDER) -> Path:
    """Returns `path` as a folder with exactly `mode`, made with its parents where needed."""
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    path.chmod(mode)
    return path


def write_private(path: Path, content: str | bytes) -> Path:
    """Returns `path`, replaced as a whole by `content` and readable by its owner alone."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
    return path


def ensure_private(path: Path, make: Callable[[], str]) -> str:
    """Returns the text of `path`; made by `make` the first time, its permissions set again."""
    if not path.exists():
        write_private(path, make())
    path.chmod(PRIVATE_FILE)
    return path.read_text()


def new_secret() -> str:
    """Returns 256 random bits as URL-safe text."""
    return secrets.token_urlsafe(_SECRET_BYTES)
