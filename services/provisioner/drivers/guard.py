"""The guard of a local server: sessions that keep the cap and the quota, beside it (P-02, P-03).

Postgres lets every role raise its own statement_timeout, and the owner of a table do anything with
it, so both are kept by someone else: each in a session of its own, that none waits for another. The
guard belongs to the server, not to the provisioner: it starts after it, outlives the provisioner,
comes back after a crash of the server, and ends with it.
"""

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import monotonic

import psutil

from services.provisioner.drivers.folder_lock import locked
from services.provisioner.drivers.local_database import DATABASE, GUARD, MAINTENANCE
from services.provisioner.drivers.postgres_install import binaries
from services.provisioner.drivers.postgres_process import HOST, RunningServer
from services.provisioner.drivers.server_command import ServerError, detach

# How often the guard looks, for how long past the cap a statement's own timeout may act first, and
# for how long a session that was told to end may stay before its process is killed.
PAUSE_MILLISECONDS = 1_000
GRACE_MILLISECONDS = 1_000
PATIENCE_MILLISECONDS = 3_000

# How often the quota is looked after at most, when its room runs out.
LOOK_SECONDS = 0.5
_START_SECONDS = 5.0
_END_SECONDS = 10.0
_POLL_SECONDS = 0.002
_NAME = "bulkhead-guard"
_OF_PSQL = "guards="
_PID_NAME = "bulkhead.guard"
# Each of its two sessions has a loop of its own. The newest guard is the one whose process id
# stands in the file, and it ends the sessions of the others. One that cannot come back within 30
# tries is started anew by the provisioner. Only a child of this very server is killed. The server
# then ends every session, the guard's too, and recovers; therefore a session that began to watch
# makes good for all tries before it.
_LOOP = """\
directory=$1 file=$1/$2 server=$3 psql=$4
parent() {
    if read -r stat <"/proc/$1/stat"; then
        set -- ${stat##*) }
        echo "$2"
    else
        ps -o ppid= -p "$1"
    fi
}
ours() {
    read -r first <"$directory/postmaster.pid"
    [ "$first" = "$server" ] && [ $(parent "$1") -eq "$server" ]
}
obey() {
    watched=1
    while read -r severity order pid; do
        case $order in
            watching) watched=0 ;;
            kill) ours "$pid" && kill -KILL "$pid" ;;
        esac
    done
    return $watched
}
keep() {
    tries=0
    while [ $tries -lt 30 ] && kill -0 "$server" && [ "$(cat "$file")" = $$ ]; do
        tries=$((tries + 1))
        printf '%s\\n' "$2" | "$psql" -X -q -v guards="$directory" -d "$1" 2>&1 >/dev/null |
            obey && tries=0
        sleep 1
    done
}
echo $$ >"$file"
keep "$7" "$8" &
keep "$5" "$6"
"""
OPTIONS = (
    "-c statement_timeout=0 -c lock_timeout=200 -c client_min_messages=notice "
    f"-c bulkhead.patience={PATIENCE_MILLISECONDS}ms"
)


async def start(
    directory: Path, server: RunningServer, password: str, cap_milliseconds: int
) -> None:
    """Starts the guard of `server`, if it is not there; it works within a moment.

    Raises:
        ServerError: it could not be started.
    """
    late = cap_milliseconds + GRACE_MILLISECONDS
    loop = ("/bin/sh", "-c", _LOOP, _NAME, str(directory), _PID_NAME, str(server.pid))
    psql = (
        str(binaries() / "psql"),
        _where(server, MAINTENANCE),
        f"CALL bulkhead.watch('{late} ms', '{PAUSE_MILLISECONDS} ms');",
        _where(server, DATABASE),
        (
            "SELECT bulkhead.begin_watch();\n"
            f"SELECT bulkhead.look('{PAUSE_MILLISECONDS} ms') \\watch {LOOK_SECONDS}"
        ),
    )
    variables = {"PGPASSWORD": password, "PGPASSFILE": "/dev/null", "PGOPTIONS": OPTIONS}
    async with locked(directory) as lock:
        if not alive(directory, server):
            await asyncio.to_thread(
                partial(detach, output="/dev/null", folder=Path("/"), variables=variables),
                (*loop, *psql),
                lock,
            )
            await _appears(directory, server)


def _where(server: RunningServer, database: str) -> str:
    return (
        f"host={HOST} port={server.port} dbname={database} user={GUARD} sslmode=disable "
        f"gssencmode=disable require_auth=scram-sha-256 connect_timeout=5 application_name={GUARD}"
    )


async def _appears(directory: Path, server: RunningServer) -> None:
    until = monotonic() + _START_SECONDS
    while not alive(directory, server):
        if monotonic() > until:
            raise ServerError("the guard does not start")
        await asyncio.sleep(_POLL_SECONDS)


def alive(directory: Path, server: RunningServer) -> bool:
    """Whether the guard of this very start of the server is there."""
    return _process(directory, str(server.pid)) is not None


def end(directory: Path) -> None:
    """Ends every process of every guard that the directory ever had, if there is any.

    They would also end by themselves, a moment after the server. Blocks until they are gone.

    Raises:
        ServerError: one does not end.
    """
    until = monotonic() + _END_SECONDS
    while left := [process for process, guarded in _guards() if guarded == str(directory)]:
        if monotonic() > until:
            raise ServerError("the guard does not end")
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=_POLL_SECONDS)


def guarded(home: Path) -> frozenset[str]:
    """Returns the names of the directories in `home` of which a process of a guard is left."""
    paths = (Path(directory) for _, directory in _guards())
    return frozenset(path.name for path in paths if path.parent == home)


def _guards() -> Iterator[tuple[psutil.Process, str]]:
    """Yields each process of a guard, with the directory that is in its arguments."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            directory = _guarded_by(process.cmdline())
            if directory is not None:
                yield process, directory


def _guarded_by(command: Sequence[str]) -> str | None:
    """A shell of a guard has the directory after the guard's name, a psql as a variable."""
    if _NAME in command[:-1]:
        return command[command.index(_NAME) + 1]
    if f"application_name={GUARD}" not in " ".join(command):
        return None
    named = (one for one in command if one.startswith(_OF_PSQL))
    return next((one.removeprefix(_OF_PSQL) for one in named), None)


def _process(directory: Path, *also: str) -> psutil.Process | None:
    """Returns the process that the file names, if its arguments prove that it is the guard."""
    try:
        process = psutil.Process(int((directory / _PID_NAME).read_text()))
        command = process.cmdline()
    except (OSError, ValueError, psutil.Error):
        return None
    return process if {_NAME, str(directory), *also} <= set(command) else None
