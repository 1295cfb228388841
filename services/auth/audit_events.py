"""Audit events: what is recorded, what is asked for, where a chain ends."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from services.shared.ids import AuditEventId, KeyId
from services.shared.keyformat import without_keys

_MOST_ID_LENGTH = 100


@dataclass(frozen=True, slots=True)
class NewEvent:
    """A call on its way into the log, which gives it its time, its place and its hash."""

    event_id: AuditEventId
    key_id: KeyId
    peer: str
    method: str
    resources: Mapping[str, str]
    trace_id: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One recorded call."""

    event_id: AuditEventId
    at: datetime
    key_id: KeyId
    peer: str
    method: str
    resources: Mapping[str, str]
    trace_id: str
    reason: str
    sequence: int
    previous_hash: bytes
    hash: bytes


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events are asked for; what is None asks for nothing."""

    method: str | None = None
    key_id: str | None = None
    resource_id: str | None = None
    start: datetime | None = None
    end: datetime | None = None


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Some events, newest first, and the end of the whole log as of the same moment."""

    events: list[AuditEvent] = field(default_factory=list)
    head_sequence: int = 0
    head_hash: bytes = b""


def recordable(resources: Mapping[str, str]) -> dict[str, str]:
    """Returns the ids as they can be stored: printable, not too long, and none that is a key.

    They were written by the caller and not looked at yet: a strange one must not keep the call from
    being recorded, and the log is for good.
    """
    return {
        kind: _printable(without_keys(value))[:_MOST_ID_LENGTH] for kind, value in resources.items()
    }


def recordable_text(value: str) -> str:
    """Returns what a person wrote as it can be stored: printable, and none of it a key."""
    return _printable(without_keys(value.strip()))


def _printable(value: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in value)
