"""Saving and restoring what the mesh itself keeps: its databases, its secrets and its keyrings.

`python -m deploy.local.mesh_backup save` works on a running stack, `restore` makes the state folder
from which `bulkhead up` starts. Databases of deployments and their buckets are none of it. What is
done here by hand on another installation is in docs/operations.md.
"""

import argparse
import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local import postgres
from deploy.local.environment import PREFIX, PROCESS
from deploy.local.files import private_folder, write_private
from deploy.local.layout import WITH_DATABASE, Layout
from deploy.local.ports import LOOPBACK
from deploy.local.supervisor import AlreadyRunningError, sole_supervisor
from services.provisioner.drivers import postgres_process

# A revocation is not to be older than what it revokes: auth comes last.
ORDER = (*(service for service in WITH_DATABASE if service != "auth"), "auth")
_SECRETS = "secrets"


class BackupError(Exception):
    """It cannot be done; the message says why."""


@dataclass(frozen=True, slots=True)
class _Server:
    """Where the mesh's Postgres is, and who may everything there."""

    port: int
    password_file: Path

    async def run(self, program: str, *arguments: str) -> None:
        """Runs one of Postgres' programs as its superuser."""
        environment = {
            **PROCESS,
            "PGHOST": LOOPBACK,
            "PGPORT": str(self.port),
            "PGUSER": postgres.SUPERUSER,
            # Not as an argument, which everybody could see.
            "PGPASSWORD": self.password_file.read_text(),
        }
        await _run((str(postgres_process.binaries() / program), *arguments), environment)


async def save(layout: Layout, folder: Path) -> None:
    """Saves everything to `folder`, which appears when it is whole.

    The keyrings come after the databases: a key that was made meanwhile is in them, and those from
    before are too, as long as none is destroyed meanwhile.

    Raises:
        BackupError: the stack does not run, or the folder is there.
    """
    running = postgres_process.running(postgres.server_directory(layout.state))
    if running is None:
        raise BackupError(f"no stack runs in {layout.state}")
    if await asyncio.to_thread(folder.exists):
        raise BackupError(f"{folder} is there already")
    server = _Server(running.port, postgres.password_file(layout.state, postgres.SUPERUSER))
    partial = private_folder(folder.with_name(f".{folder.name}.partial"))
    for database in ORDER:
        file = write_private(partial / f"{database}.dump", b"")
        await server.run("pg_dump", "--format=custom", f"--file={file}", database)
    await asyncio.to_thread(_copy_secrets, layout.state, partial)
    partial.rename(folder)


async def restore(layout: Layout, folder: Path, auth_arguments: Sequence[str]) -> None:
    """Makes the mesh's databases, secrets and keyrings in a state folder that has none.

    `auth_arguments` go to `services.auth.restored`, which ends the keys that ended since.

    Raises:
        BackupError: something is there already, or could not be restored.
    """
    directory = postgres.server_directory(layout.state)
    there = [each for each in (directory, layout.operator_key) if each.exists()]
    if there or (layout.secrets.exists() and any(layout.secrets.iterdir())):
        raise BackupError(
            f"{layout.state} has a mesh already: stop it, and move away {directory},"
            f" {layout.secrets} and {layout.operator_key}"
        )
    layout.make()
    with sole_supervisor(layout.lock):
        await asyncio.to_thread(_copy_secrets, folder, layout.state)
        try:
            await _restore_databases(layout, folder, auth_arguments)
        finally:
            await postgres_process.stop(directory)


async def _restore_databases(layout: Layout, folder: Path, auth_arguments: Sequence[str]) -> None:
    mesh = await postgres.start(layout.state, postgres_process.free_port())
    server = _Server(mesh.port, mesh.superuser_password_file)
    for database in ORDER:
        await mesh.create_service(database)
        await server.run(
            "pg_restore",
            "--exit-on-error",
            "--single-transaction",
            f"--dbname={database}",
            str(folder / f"{database}.dump"),
        )
    await _run(
        (sys.executable, "-P", "-m", "services.auth.restored", *auth_arguments),
        {**PROCESS, **_auth_settings(layout, mesh)},
    )


def _auth_settings(layout: Layout, mesh: postgres.MeshPostgres) -> dict[str, str]:
    named = {
        "postgres_host": mesh.host,
        "postgres_port": mesh.port,
        "postgres_password_file": postgres.password_file(layout.state, "auth"),
        "pepper_file": layout.secrets / "pepper",
    }
    return {f"{PREFIX}{name.upper()}": str(value) for name, value in named.items()}


def _copy_secrets(source: Path, target: Path) -> None:
    """Copies the secrets folder, readable by its owner alone.

    Not the operator's key: one that was replaced since would open again. A start makes a new one.
    """
    private_folder(target / _SECRETS)
    for file in sorted((source / _SECRETS).iterdir()):
        # Locks and what was being written begin with a dot.
        if file.is_file() and not file.name.startswith("."):
            write_private(target / _SECRETS / file.name, file.read_bytes())


async def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdin=asyncio.subprocess.DEVNULL
    )
    if await process.wait():
        raise BackupError(f"{Path(command[0]).name} ended with {process.returncode}")


def main() -> None:
    """Saves or restores; ends with 1 and one line when it cannot."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m deploy.local.mesh_backup")
    verbs = parser.add_subparsers(dest="verb", required=True)
    saving = verbs.add_parser("save", help="of a running stack")
    restoring = verbs.add_parser("restore", help="into a state folder without a mesh")
    for verb in (saving, restoring):
        verb.add_argument("--state", type=Path, default=Path(".bulkhead"), help="[.bulkhead]")
    saving.add_argument("--to", type=Path, required=True, help="a folder that is not there yet")
    restoring.add_argument("--from", type=Path, required=True, dest="folder")
    which = restoring.add_mutually_exclusive_group(required=True)
    which.add_argument("--ended", type=Path, nargs="+", metavar="LOG", help="logs of auth")
    which.add_argument("--every-key", action="store_true", help="end every key of every tenant")
    restoring.add_argument("--keys-to", type=Path, metavar="FOLDER")
    given = parser.parse_args()
    layout = Layout.of(given.state)
    try:
        if given.verb == "save":
            asyncio.run(save(layout, given.to.absolute()))
        else:
            asyncio.run(restore(layout, given.folder, _auth_arguments(given)))
    except (BackupError, AlreadyRunningError, OSError, postgres_process.ServerError) as error:
        sys.exit(str(error))


def _auth_arguments(given: argparse.Namespace) -> list[str]:
    which = ["--every-key"] if given.every_key else ["--ended", *map(str, given.ended)]
    keys = ["--keys-to", str(given.keys_to)] if given.keys_to else []
    return [*which, *keys]


if __name__ == "__main__":
    main()
