"""Programs that run as the servers' user: to their end, or detached to outlive us."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.provisioner.drivers.folder_lock import Held
from services.provisioner.drivers.postgres_install import ServerUser, server_user

LOCALE = "C.UTF-8"
# Started by a shell that ends at once, so that the program is nobody's child: it needs no one to
# outlive it or to reap it.
_DETACH = 'output=$1; shift; "$@" </dev/null >>"$output" 2>&1 & echo $!'

# Becomes the servers' user, then the program. Popen's own `user` would have this process fork in
# earnest, and gRPC's threads do not survive that: the child crashes in gRPC's fork handlers.
_BECOME = """\
import os, sys
os.setgroups([])
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[1]))
os.execv(sys.argv[3], sys.argv[3:])
"""


class ServerError(Exception):
    """A server could not be made, started or stopped."""


def run(command: Sequence[str], lock: Held, text: str = "", *, as_server: bool = True) -> None:
    """Runs `command` to its end, with `text` as its input; it holds `lock` as long as it runs.

    Raises:
        ServerError: it failed. What it said is not repeated, for it could hold a secret.
    """
    done = subprocess.run(
        _as_server(command) if as_server else command,
        input=text,
        text=True,
        capture_output=True,
        check=False,
        cwd="/",
        env=_environment(),
        umask=0o077,
        pass_fds=(lock.descriptor,),
    )
    if done.returncode != 0:
        raise ServerError(f"{Path(command[0]).name} ended with {done.returncode}")


def detach(
    command: Sequence[str],
    lock: Held,
    *,
    folder: Path,
    output: str,
    variables: Mapping[str, str] | None = None,
) -> int:
    """Starts `command` in `folder` and a session of its own, and returns its process id at once.

    Args:
        command: an absolute path and its arguments; everybody can see them.
        lock: held until the program itself has begun.
        folder: where it works.
        output: the file, seen from there, that what it says is appended to.
        variables: its environment, beside the plain one; only its own user can see that.

    Raises:
        ServerError: it could not be started.
    """
    try:
        done = subprocess.run(
            _as_server(("/bin/sh", "-c", _DETACH, "sh", output, *command)),
            # The shell and what comes before it inherit the lock, the program does not.
            stdin=lock.descriptor,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            cwd=folder,
            env={**_environment(), **(variables or {})},
            umask=0o077,
            start_new_session=True,
        )
        return int(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise ServerError(f"{Path(command[0]).name} could not be started") from error


def give(path: Path) -> None:
    """Makes `path` the servers' user's own."""
    user = server_user()
    if user is not None:
        os.chown(path, user.uid, user.gid)


def _as_server(command: Sequence[str]) -> Sequence[str]:
    user = server_user()
    if user is None:
        return command
    return (*_becoming(user), *command)


def _becoming(user: ServerUser) -> Sequence[str]:
    """Returns the program that runs another one as `user`: the system's own starts sooner."""
    found = shutil.which("setpriv", path=os.defpath)
    # BusyBox has one of that name, which cannot do it.
    if found is not None and Path(found).resolve().name == "setpriv":
        return (found, f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "--")
    return (sys.executable, "-I", "-S", "-c", _BECOME, str(user.uid), str(user.gid))


def _environment() -> dict[str, str]:
    """Nothing of ours is passed on."""
    return {"PATH": os.defpath, "LC_ALL": LOCALE, "TZ": "UTC"}
