"""Server directories: one template by `initdb`, then copies of it."""

import asyncio
import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from services.provisioner.drivers.folder_lock import Held, locked
from services.provisioner.drivers.postgres_install import binaries
from services.provisioner.drivers.server_command import LOCALE, give, run


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


async def ensure_template(home: Path, blueprint: Blueprint) -> Path:
    """Returns the template directory of `blueprint` in `home`, made if it is not there.

    Raises:
        ServerError: initdb or a script failed.
    """
    template = home / blueprint.name
    async with locked(template) as lock:
        await asyncio.to_thread(_initialize, template, blueprint, lock)
    return template


async def clone(template: Path, target: Path) -> None:
    """Makes `target` a copy of `template`, whole or not at all; does nothing if it is there.

    Raises:
        ServerError: the copy failed.
    """
    async with locked(target) as lock:
        await asyncio.to_thread(_copy, template, target, lock)


def partial_of(target: Path) -> Path:
    """Returns where `target` is made before it is whole."""
    return target.with_name(f".{target.name}.partial")


def _copy(template: Path, target: Path, lock: Held) -> None:
    if target.exists():
        return
    partial = partial_of(target)
    shutil.rmtree(partial, ignore_errors=True)
    run(("cp", "-a", "--reflink=auto", "--", str(template), str(partial)), lock, as_server=False)
    partial.rename(target)


def _initialize(template: Path, blueprint: Blueprint, lock: Held) -> None:
    if template.exists():
        return
    partial = partial_of(template)
    shutil.rmtree(partial, ignore_errors=True)
    _run_initdb(partial, blueprint, lock)
    (partial / "pg_hba.conf").write_text(blueprint.access)
    for database, script in blueprint.scripts:
        _run_single_user(partial, database, script, lock)
    partial.rename(template)


def _run_initdb(directory: Path, blueprint: Blueprint, lock: Held) -> None:
    directory.mkdir(mode=0o700)
    give(directory)
    with _secret_file(
        directory.with_name(f"{directory.name}.password"), blueprint.password
    ) as file:
        run(
            (
                str(binaries() / "initdb"),
                f"--pgdata={directory}",
                f"--username={blueprint.superuser}",
                f"--pwfile={file}",
                "--auth=scram-sha-256",
                "--encoding=UTF8",
                f"--locale={LOCALE}",
                "--wal-segsize=1",
                "--no-sync",
                "--no-instructions",
            ),
            lock,
        )


@contextmanager
def _secret_file(file: Path, secret: str) -> Iterator[Path]:
    """Yields `file` with the secret in it, for the servers' user alone; it is gone afterwards."""
    # One that was killed may have left it.
    file.unlink(missing_ok=True)
    try:
        file.touch(mode=0o600, exist_ok=False)
        file.write_text(secret)
        give(file)
        yield file
    finally:
        file.unlink()


def _run_single_user(directory: Path, database: str, script: str, lock: Held) -> None:
    """Runs `script` without a server: a statement ends with a semicolon before an empty line."""
    run(
        (
            str(binaries() / "postgres"),
            *("--single", "-j", "-D", str(directory)),
            *("-c", "exit_on_error=on", "-c", "fsync=off", "-c", "log_statement=none"),
            database,
        ),
        lock,
        script.rstrip() + "\n\n",
    )
