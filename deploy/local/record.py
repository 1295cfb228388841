"""What a supervisor tells on disk about the processes that it keeps."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deploy.local.files import write_private
from deploy.local.layout import Layout
from deploy.local.probes import POSTGRES
from deploy.local.processes import Alive, identified
from deploy.local.supervisor import Kept


@dataclass(frozen=True, slots=True)
class RecordedProcess:
    """A process of the stack as it was last recorded."""

    name: str
    alive: Alive | None
    since: str | None
    restarts: int
    address: str
    log: str


@dataclass(frozen=True, slots=True)
class Record:
    """The supervisor and its processes as they were last recorded."""

    ready: bool
    supervisor: Alive | None
    processes: tuple[RecordedProcess, ...]

    @property
    def supervised(self) -> bool:
        """Whether the supervisor lives."""
        return self.supervisor is not None and self.supervisor.process() is not None


def write_record(layout: Layout, kept: Sequence[Kept], *, ready: bool) -> None:
    """Tells which processes run, for `status` and for cleaning up after a crash."""
    own = identified(os.getpid())
    record = {
        "ready": ready,
        "supervisor": {"pid": own.pid, "created": own.created} if own else None,
        "processes": [_described(each) for each in kept],
    }
    write_private(layout.running, json.dumps(record, indent=2) + "\n")


def read_record(layout: Layout) -> Record | None:
    """Returns the record; None when no stack runs, or ran and crashed, here."""
    try:
        raw = json.loads(layout.running.read_text())
    except FileNotFoundError:
        return None
    processes = tuple(_process(each) for each in raw["processes"])
    return Record(bool(raw["ready"]), _alive(raw["supervisor"]), processes)


def leftovers(layout: Layout) -> list[Alive]:
    """Returns processes that a supervisor which died left behind.

    The mesh's Postgres server is none of them: it is adopted as it is.
    """
    record = read_record(layout)
    if record is None:
        return []
    return [each.alive for each in record.processes if each.alive and each.name != POSTGRES]


def _process(raw: dict[str, Any]) -> RecordedProcess:
    return RecordedProcess(
        name=raw["name"],
        alive=_alive(raw),
        since=raw["since"],
        restarts=raw["restarts"],
        address=raw["address"],
        log=raw["log"],
    )


def _alive(raw: dict[str, Any] | None) -> Alive | None:
    return Alive(raw["pid"], raw["created"]) if raw and raw["pid"] else None


def _described(kept: Kept) -> dict[str, object]:
    return {
        "name": kept.program.name,
        "pid": kept.alive.pid if kept.alive else None,
        "created": kept.alive.created if kept.alive else None,
        "since": kept.since.isoformat() if kept.since else None,
        "restarts": kept.restarts,
        "address": kept.program.address,
        "log": str(kept.program.log),
    }
