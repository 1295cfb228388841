"""Trees of earlier releases, out of the repository's history where there is one."""

import io
import shutil
import subprocess
import zipfile
from pathlib import Path

from tests.contracts import ROOT

PARTS = ("services", "protos/gen")


def before_newest_migration(service: str, folder: Path) -> Path:
    """Returns a tree whose `service` knows every migration but the newest.

    That of the last commit before it; without history, this tree without it.
    """
    newest = max((ROOT / "services" / service / "migrations").glob("*.sql"))
    path = str(newest.relative_to(ROOT))
    added = _git("log", "-1", "--format=%H", "--diff-filter=A", "--", path)
    # One that is in no commit yet comes after the latest.
    commit = _commit(f"{added}~1" if added else "HEAD")
    if commit is not None:
        return _checked_out(commit, folder)
    _copied(folder)
    (folder / path).unlink()
    return folder


def previous_commit(folder: Path) -> Path:
    """Returns the tree of the commit before the latest; without history, this one."""
    commit = _commit("HEAD~1")
    return _copied(folder) if commit is None else _checked_out(commit, folder)


def _checked_out(commit: str, folder: Path) -> Path:
    command = ["git", "-C", str(ROOT), "archive", "--format=zip", commit, *PARTS]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        files.extractall(folder)
    return folder


def _copied(folder: Path) -> Path:
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _commit(name: str) -> str | None:
    """Returns the commit, None if there is none, or not its files."""
    return _git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}") or None


def _git(*arguments: str) -> str:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
