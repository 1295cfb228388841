"""Commands of the client in processes that are forked from one that has imported it already.

Each is a process of its own with its own arguments, environment, streams and exit code, as it is
when it is started anew; importing all that the client needs takes far longer than what it does.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

# Where the tests of this process find it.
ADDRESS_VARIABLE = "BULKHEAD_TEST_COMMANDS"
# With `-c` as well, so that a command names itself as one does that was started that way.
_PROGRAM = """
import gc
import pydantic.type_adapter, rich.markdown, rich.panel, typer.rich_utils
import cli.embedded, cli.program
from cli.__main__ import main
from tests.warm_commands import serve
# Or else each process copies all of this when it looks for what to collect.
gc.freeze()
serve()
main()
"""
# As long as a whole stack may take on a loaded machine.
_SECONDS = 120.0
_PASSED_STREAMS = 3


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True, slots=True)
class WarmCommands:
    """A process that has imported the client, and forks at each call."""

    address: Path

    @classmethod
    def found(cls) -> "WarmCommands":
        """Returns the one that the session's fixture runs."""
        return cls(Path(os.environ[ADDRESS_VARIABLE]))

    async def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], given: str | None
    ) -> Ended:
        """Returns once the command has ended.

        Args:
            arguments: what was typed after `bulkhead`.
            environment: all of its environment.
            given: what it reads from its standard input; None: nothing is there.

        Raises:
            TimeoutError: it did not end within two minutes.
        """
        return await asyncio.to_thread(self._run, arguments, environment, given)

    def _run(
        self, arguments: Sequence[str], environment: Mapping[str, str], given: str | None
    ) -> Ended:
        wanted = json.dumps({"arguments": list(arguments), "environment": dict(environment)})
        with (
            _input(given) as stdin,
            TemporaryFile() as out,
            TemporaryFile() as err,
            socket.socket(socket.AF_UNIX) as asked,
        ):
            asked.settimeout(_SECONDS + 5)
            asked.connect(str(self.address))
            socket.send_fds(asked, [b"\n"], [each.fileno() for each in (stdin, out, err)])
            asked.sendall(f"{wanted}\n".encode())
            code = int(asked.makefile().readline())
            for stream in (out, err):
                stream.seek(0)
            return Ended(code, out.read().decode(), err.read().decode())


@contextmanager
def _input(given: str | None) -> Iterator[IO[bytes]]:
    with TemporaryFile() if given is not None else Path(os.devnull).open("rb") as stdin:
        if given is not None:
            stdin.write(given.encode())
            stdin.seek(0)
        yield stdin


@asynccontextmanager
async def warm_commands() -> AsyncIterator[WarmCommands]:
    """Runs the process for the length of the context."""
    with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        address = Path(folder) / "commands"
        listening.bind(str(address))
        listening.listen()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _PROGRAM, str(listening.fileno())),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(listening.fileno(),),
        )
        try:
            yield WarmCommands(address)
        finally:
            process.terminate()
            await process.wait()


def serve() -> None:
    """Forks for each command that is asked for; returns in the process of each."""
    listening = socket.socket(fileno=int(sys.argv[1]))
    # Nobody waits for those that watch a command.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            break
        asked.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    wanted = _received(asked)
    command = os.fork()
    if command:
        _, status = os.waitpid(command, 0)
        with contextlib.suppress(BrokenPipeError):
            asked.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    asked.close()
    _become(wanted)


def _received(asked: socket.socket) -> Any:
    """Returns what was asked for; its streams are this process's then."""
    _, streams, _, _ = socket.recv_fds(asked, 1, _PASSED_STREAMS)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    with asked.makefile() as lines:
        return json.loads(lines.readline())


def _become(wanted: Any) -> None:
    """Gives this process what a command has that is started anew."""
    # No command outlives the test that waits for it.
    signal.alarm(int(_SECONDS))
    sys.argv = ["-c", *wanted["arguments"]]
    os.environ.clear()
    os.environ.update(wanted["environment"])
    time.tzset()
