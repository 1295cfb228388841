"""The chain of an audit log, recomputed without trusting who keeps it; see docs/audit.md."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from bulkhead.auth.v1 import auth_service_pb2 as pb

_LABEL = "bulkhead.audit.v1"
_HASH_BYTES = 32
_LENGTH_BYTES = 4
_HEAD = re.compile(r"(\d{1,18}):([0-9a-fA-F]{64})")


class NotAnEventError(Exception):
    """A line of an export that is no event, or only a part of one."""

    def __init__(self, line: int) -> None:
        super().__init__(f"line {line}: not an audit event, or only a part of one")
        self.line = line


class Fault(StrEnum):
    """What can be wrong with an event, or with the log's end."""

    CHANGED = "changed"
    MISSING = "missing"
    OUT_OF_ORDER = "out_of_order"
    UNLINKED = "unlinked"
    TRUNCATED = "truncated"
    OTHER_HEAD = "other_head"
    # Of an export.
    EMPTY = "empty"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    sequence: int
    event_id: str
    fault: Fault
    message: str


@dataclass(frozen=True, slots=True)
class Head:
    """Where a log ends, or ended: it stands for every event up to there."""

    sequence: int = 0
    hash: bytes = bytes(_HASH_BYTES)

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Returns the head in `42:<64 hex digits>`.

        Raises:
            ValueError: the text is not of that form.
        """
        match = _HEAD.fullmatch(text.strip())
        if match is None:
            raise ValueError("a head is SEQUENCE:HASH, as `audit verify` prints it")
        return cls(int(match[1]), bytes.fromhex(match[2]))

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash.hex()}"


def event_hash(event: pb.AuditEvent) -> bytes:
    """Returns the SHA-256 of all that the event says, and of the hash before it."""
    return hashlib.sha256(b"".join(map(_field, _values(event)))).digest()


def _values(event: pb.AuditEvent) -> Iterator[str | bytes]:
    yield _LABEL
    yield event.previous_hash
    yield str(event.sequence)
    yield event.event_id
    yield str(event.time.seconds)
    yield str(event.time.nanos)
    yield from (event.key_id, event.peer, event.method, event.trace_id, event.reason)
    yield str(len(event.resources))
    for kind in sorted(event.resources, key=str.encode):
        yield from (kind, event.resources[kind])


def _field(value: str | bytes) -> bytes:
    """Returns the value after its length: without it, two events could read alike."""
    raw = value.encode() if isinstance(value, str) else value
    return len(raw).to_bytes(_LENGTH_BYTES, "big") + raw


@dataclass(slots=True)
class ChainCheck:
    """Takes the events of a log, oldest first, and says what is wrong with them."""

    expected: tuple[Head, ...] = ()
    events: int = 0
    problems: list[Problem] = field(default_factory=list)
    last: Head = field(default_factory=Head)
    # Expected heads up to which nothing is wrong.
    confirmed: set[Head] = field(default_factory=set)

    def take(self, event: pb.AuditEvent) -> None:
        """Checks one event: against itself, the event before it and the heads that are known."""
        self.events += 1
        for fault, message in self._faults(event):
            self.problems.append(Problem(event.sequence, event.event_id, fault, message))
        self.last = Head(event.sequence, event.hash)
        if not self.problems and self.last in self.expected:
            self.confirmed.add(self.last)

    def take_all(self, events: Iterable[pb.AuditEvent]) -> "ChainCheck":
        """Checks all events and the end; returns itself."""
        for event in events:
            self.take(event)
        self._check_end()
        return self

    def take_export(self, events: Iterable[pb.AuditEvent]) -> "ChainCheck":
        """Checks a file of events up to the first line that is none; returns itself."""
        try:
            self.take_all(events)
        except NotAnEventError as error:
            self.problems.append(Problem(0, "", Fault.UNREADABLE, str(error)))
        else:
            if self.events == 0:
                self.problems.append(Problem(0, "", Fault.EMPTY, "the file holds no event"))
        return self

    def _faults(self, event: pb.AuditEvent) -> Iterator[tuple[Fault, str]]:
        number = event.sequence
        if event_hash(event) != event.hash:
            yield Fault.CHANGED, f"event {number} was changed: its hash is not that of what it says"
        if number > self.last.sequence + 1:
            yield Fault.MISSING, f"{_range(self.last.sequence + 1, number - 1)} missing"
        elif number <= self.last.sequence:
            yield Fault.OUT_OF_ORDER, f"event {number} stands after event {self.last.sequence}"
        elif event.previous_hash != self.last.hash:
            yield Fault.UNLINKED, f"event {number} does not follow the event that stands before it"
        for head in self.expected:
            if head.sequence == number and head.hash != event.hash:
                yield Fault.OTHER_HEAD, f"event {number} is not the one that was known by its hash"

    def _check_end(self) -> None:
        for head in self.expected:
            if head.sequence > self.last.sequence:
                message = f"{_range(self.last.sequence + 1, head.sequence)} missing at the end"
                self.problems.append(Problem(head.sequence, "", Fault.TRUNCATED, message))
            elif head.sequence == 0 and head != Head():
                message = "no log begins with the hash that was given for 0"
                self.problems.append(Problem(0, "", Fault.OTHER_HEAD, message))


def _range(first: int, last: int) -> str:
    return f"event {first} is" if first == last else f"events {first} to {last} are"
