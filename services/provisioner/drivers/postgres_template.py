"""Server directories: one template by `initdb`, then copies of it, one of them made in advance."""

import asyncio
import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.provisioner.drivers.folder_lock import Held, locked
from services.provisioner.drivers.postgres_install import binaries
from services.provisioner.drivers.server_command import LOCALE, give, run

Result = TypeVar("Result")


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
        await to_its_end(partial(_initialize, template, blueprint, lock))
    return template


async def ensure_spare(template: Path) -> Path:
    """Returns the copy of `template` that the next `clone` takes, made if it is not there.

    Raises:
        ServerError: the copy failed.
    """
    spare = spare_of(template)
    async with locked(spare) as lock:
        await to_its_end(partial(_copy, template, spare, lock))
    return spare


async def clone(template: Path, target: Path) -> None:
    """Makes `target` a copy of `template`, whole or not at all; does nothing if it is there.

    The spare copy becomes it, if there is one; one that is just being made is waited for.

    Raises:
        ServerError: the copy failed.
    """
    spare = spare_of(template)
    async with locked(target) as lock:
        async with locked(spare):
            _take(spare, target)
        await to_its_end(partial(_copy, template, target, lock))


def spare_of(template: Path) -> Path:
    """Returns where the spare copy of `template` lies; it has a name of its own kind."""
    return template.with_name(f"{template.name}.spare")


def partial_of(target: Path) -> Path:
    """Returns where `target` is made before it is whole."""
    return target.with_name(f".{target.name}.partial")


async def to_its_end(work: Callable[[], Result], threads: Executor | None = None) -> Result:
    """Does `work` in a thread; who is cancelled meanwhile holds the folder until it has ended."""
    thread = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(thread)
    finally:
        await asyncio.gather(thread, return_exceptions=True)


def _take(spare: Path, target: Path) -> None:
    if spare.exists() and not target.exists():
        spare.rename(target)


def _copy(template: Path, target: Path, lock: Held) -> None:
    half = partial_of(target)
    shutil.rmtree(half, ignore_errors=True)
    if target.exists():
        return
    run(("cp", "-a", "--reflink=auto", "--", str(template), str(half)), lock, as_server=False)
    half.rename(target)


def _initialize(template: Path, blueprint: Blueprint, lock: Held) -> None:
    if template.exists():
        return
    half = partial_of(template)
    shutil.rmtree(half, ignore_errors=True)
    _run_initdb(half, blueprint, lock)
    (half / "pg_hba.conf").write_text(blueprint.access)
    for database, script in blueprint.scripts:
        run_single_user(half, database, script, lock)
    half.rename(template)


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


def run_single_user(
    directory: Path, database: str, script: str, lock: Held, *, durable: bool = False
) -> None:
    """Runs `script` without a server: a statement ends with a semicolon before an empty line.

    Args:
        directory: a server's, which does not run; it is made whole first if it was not left so.
        database: where the script runs.
        script: the statements.
        lock: held as long as they run.
        durable: what they wrote outlives a failure of the machine.

    Raises:
        ServerError: a statement failed.
    """
    sync = "on" if durable else "off"
    run(
        (
            str(binaries() / "postgres"),
            *("--single", "-j", "-D", str(directory)),
            *("-c", "exit_on_error=on", "-c", f"fsync={sync}", "-c", "log_statement=none"),
            database,
        ),
        lock,
        script.rstrip() + "\n\n",
    )
