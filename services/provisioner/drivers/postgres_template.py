"""Server directories: one template by `initdb`, then copies of it."""

import asyncio
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.provisioner.drivers.folder_lock import locked
from services.provisioner.drivers.postgres_install import binaries, server_user

LOCALE = "C.UTF-8"


class ServerError(Exception):
    """A server could not be made, started or stopped."""


@dataclass(frozen=True, slots=True)
class Blueprint:
    """What every server cloned from one template begins with."""

    superuser: str
    password: str = field(repr=False)
    # The whole of pg_hba.conf.
    access: str
    # SQL that the superuser runs once: pairs of database and script, in order.
    scripts: Sequence[tuple[str, str]] = ()

    @property
    def name(self) -> str:
        """A name that changes with anything in the blueprint and with Postgres itself."""
        parts = (
            str(binaries()),
            self.superuser,
            self.password,
            self.access,
            *(part for script in self.scripts for part in script),
        )
        return f"template-{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:16]}"


def environment() -> dict[str, str]:
    """Returns the whole environment of Postgres programs: nothing of ours is passed on."""
    return {"PATH": os.defpath, "LC_ALL": LOCALE, "TZ": "UTC"}


async def ensure_template(home: Path, blueprint: Blueprint) -> Path:
    """Returns the template directory of `blueprint` in `home`, made if it is not there.

    Raises:
        ServerError: initdb or a script failed.
    """
    template = home / blueprint.name
    async with locked(template):
        await asyncio.to_thread(_initialize, template, blueprint)
    return template


async def clone(template: Path, target: Path) -> None:
    """Makes `target` a copy of `template`, whole or not at all; does nothing if it is there.

    Raises:
        ServerError: the copy failed.
    """
    async with locked(target):
        await asyncio.to_thread(_copy, template, target)


def partial_of(target: Path) -> Path:
    """Returns where `target` is made before it is whole."""
    return target.with_name(f".{target.name}.partial")


def _copy(template: Path, target: Path) -> None:
    if target.exists():
        return
    partial = partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    _run(("cp", "-a", "--reflink=auto", "--", str(template), str(partial)), as_server=False)
    partial.rename(target)


def _initialize(template: Path, blueprint: Blueprint) -> None:
    if template.exists():
        return
    partial = partial_of(template)
    shutil.rmtree(partial, ignore_errors=True)
    _run_initdb(partial, blueprint)
    (partial / "pg_hba.conf").write_text(blueprint.access)
    for database, script in blueprint.scripts:
        _run_single_user(partial, database, script)
    partial.rename(template)


def _run_initdb(directory: Path, blueprint: Blueprint) -> None:
    directory.mkdir(mode=0o700)
    _give(directory)
    with tempfile.NamedTemporaryFile(mode="w", prefix="bulkhead-") as secret:
        secret.write(blueprint.password)
        secret.flush()
        _give(Path(secret.name))
        _run(
            (
                str(binaries() / "initdb"),
                f"--pgdata={directory}",
                f"--username={blueprint.superuser}",
                f"--pwfile={secret.name}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                f"--locale={LOCALE}",
                "--wal-segsize=1",
                "--no-sync",
                "--no-instructions",
            ),
        )


def _run_single_user(directory: Path, database: str, script: str) -> None:
    """Runs `script` without a server: a statement ends with a semicolon before an empty line."""
    _run(
        (
            str(binaries() / "postgres"),
            *("--single", "-j", "-D", str(directory)),
            *("-c", "exit_on_error=on", "-c", "fsync=off", "-c", "log_statement=none"),
            database,
        ),
        script.rstrip() + "\n\n",
    )


def _give(path: Path) -> None:
    user = server_user()
    if user is not None:
        os.chown(path, user.uid, user.gid)


def _run(command: Sequence[str], text: str = "", *, as_server: bool = True) -> None:
    """Runs a program to its end; what it says is not repeated, for it could hold a secret."""
    user = server_user() if as_server else None
    done = subprocess.run(
        command,
        input=text,
        text=True,
        capture_output=True,
        check=False,
        cwd="/",
        env=environment(),
        umask=0o077,
        user=None if user is None else user.uid,
        group=None if user is None else user.gid,
        extra_groups=None if user is None else [],
    )
    if done.returncode != 0:
        name = Path(command[0]).name
        raise ServerError(f"{name} ended with {done.returncode}")
