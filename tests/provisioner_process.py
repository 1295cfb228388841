"""A provisioner that dies and comes back: `python -m tests.provisioner_process FOLDER`.

Its settings are in `BULKHEAD_*`. It serves, and kills itself, as `kill -9` would, at every boundary
of a step of an armed kind of operation, once at each; and is started again at once. What is armed
and where it died stand in files of the folder, see `provisioner_kills`.
"""

import fcntl
import gc
import os
import signal
import sys
from functools import partial
from io import TextIOWrapper
from pathlib import Path

import httpcore  # noqa: F401 or else each child imports it anew, for its first request

from services.provisioner.domain import OperationKind, Step
from services.provisioner.server import compose
from services.provisioner.settings import Settings
from services.provisioner.work import Moment
from services.shared.runtime import main
from tests.provisioner_kills import ARMED, DIED, HELD, TWICE, Death


class Killer:
    """Kills the process at boundaries where none died before; sees whether steps are shared."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: TextIOWrapper = (folder / HELD).open("a")

    async def reached(self, kind: OperationKind, step: Step, moment: Moment) -> None:
        """Does not return from a boundary at which it is to die."""
        if moment is Moment.BEFORE:
            self._hold(kind, step)
        death = Death(kind, step, moment)
        if kind in self._lines(ARMED) and str(death) not in self._lines(DIED):
            self._write(DIED, str(death))
            os.kill(os.getpid(), signal.SIGKILL)
        if moment is Moment.AFTER:
            fcntl.flock(self._held, fcntl.LOCK_UN)

    def _hold(self, kind: OperationKind, step: Step) -> None:
        """Writes down when somebody else is between the boundaries of a step."""
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._write(TWICE, f"{kind} {step}")

    def _lines(self, name: str) -> list[str]:
        return (self._folder / name).read_text().split("\n")

    def _write(self, name: str, line: str) -> None:
        with (self._folder / name).open("a") as file:
            file.write(f"{line}\n")


def serve_until_told_to_end(folder: Path) -> int:
    """Returns the status of the first process that ended otherwise than by being killed."""
    ended = False
    child = 0

    def end(*_: object) -> None:
        nonlocal ended
        ended = True
        if child:
            os.kill(child, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    # Or else each child copies all that is imported when it looks for what to collect.
    gc.freeze()
    while True:
        # Nothing here has threads, and all that is to be imported is: a new one serves at once.
        child = os.fork()
        if not child:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            main("provisioner", Settings, partial(compose, boundary=Killer(folder)))
            os._exit(0)
        if ended:
            os.kill(child, signal.SIGTERM)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if ended or status != -signal.SIGKILL:
            return status


if __name__ == "__main__":
    raise SystemExit(serve_until_told_to_end(Path(sys.argv[1])))
