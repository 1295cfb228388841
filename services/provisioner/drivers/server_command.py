"""Programs that run as the servers' user: to their end, or detached to outlive us."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.provisioner.drivers.postgres_install import ServerUser, server_user

LOCALE = "C.UTF-8"
# Started by a shell that ends at once, so that the program is nobody's child: it needs no one to
# outlive it or to reap it.
_DETACH = 'output=$1; shift; "$@" </dev/null >>"$output" 2>&1 & echo $!'


class ServerError(Exception):
    """A server could not be made, started or stopped."""


def run(command: Sequence[str], text: str = "", *, as_server: bool = True) -> None:
    """Runs `command` to its end, with `text` as its input.

    Raises:
        ServerError: it failed. What it said is not repeated, for it could hold a secret.
    """
    user = server_user() if as_server else None
    done = subprocess.run(
        command, input=text, text=True, capture_output=True, check=False, cwd="/", **_plain(user)
    )
    if done.returncode != 0:
        raise ServerError(f"{Path(command[0]).name} ended with {done.returncode}")


def detach(
    command: Sequence[str],
    *,
    folder: Path,
    output: str,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Starts `command` in `folder` and a session of its own, and returns its process id at once.

    Args:
        command: an absolute path and its arguments; everybody can see them.
        folder: where it works.
        output: the file, seen from there, that what it says is appended to.
        variables: its environment, beside the plain one; only its own user can see that.

    Raises:
        ServerError: it could not be started.
    """
    options = _plain(server_user())
    options["env"] = {**options["env"], **(variables or {})}
    try:
        done = subprocess.run(
            ("/bin/sh", "-c", _DETACH, "sh", output, *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            cwd=folder,
            start_new_session=True,
            **options,
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ServerError(f"{Path(command[0]).name} could not be started") from error


def give(path: Path) -> None:
    """Makes `path` the servers' user's own."""
    user = server_user()
    if user is not None:
        os.chown(path, user.uid, user.gid)


def _plain(user: ServerUser | None) -> dict[str, Any]:
    """Nothing of ours is passed on: no variables, no groups, no files for others to read."""
    return {
        "env": {"PATH": os.defpath, "LC_ALL": LOCALE, "TZ": "UTC"},
        "umask": 0o077,
        "user": None if user is None else user.uid,
        "group": None if user is None else user.gid,
        "extra_groups": None if user is None else [],
    }
