"""What the double of a cluster's API keeps: objects, their versions, and what happened to them."""

import asyncio
import copy
import itertools
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Key:
    """Where an object is."""

    plural: str
    namespace: str
    name: str


class RefusedError(Exception):
    """What the API answers instead of doing it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Event:
    version: int
    type: str
    key: Key
    object: Object


@dataclass(slots=True)
class Store:
    """Objects by their keys. Versions grow by one with each change of any of them."""

    objects: dict[Key, Object] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    # What each object was applied as the last time, by the one manager that there is.
    applied: dict[Key, Object] = field(default_factory=dict)
    version: int = 1_000
    # Events up to here are forgotten.
    forgotten: int = 0
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def get(self, key: Key) -> Object:
        found = self.objects.get(key)
        if found is None:
            raise RefusedError(404, "NotFound")
        return copy.deepcopy(found)

    def all(self, plural: str, namespace: str = "") -> list[Object]:
        return [
            copy.deepcopy(found)
            for key, found in sorted(self.objects.items(), key=lambda one: one[0].name)
            if key.plural == plural and namespace in ("", key.namespace)
        ]

    def put(self, key: Key, wanted: Object) -> Object:
        """Makes or replaces an object; nothing happens if it is as it was."""
        found = self.objects.get(key)
        fresh = copy.deepcopy(wanted)
        meta = fresh.setdefault("metadata", {})
        if found is None:
            self._check_namespace(key)
            meta |= {"uid": str(uuid.uuid4()), "creationTimestamp": now()}
        else:
            meta["resourceVersion"] = found["metadata"]["resourceVersion"]
            if fresh == found:
                return fresh
        self._check_size(found, fresh)
        self._happened("ADDED" if found is None else "MODIFIED", key, fresh)
        return copy.deepcopy(fresh)

    def apply(self, key: Key, wanted: Object) -> Object:
        """Server-side apply: what was applied before, and is not any more, goes."""
        found, version = self.objects.get(key), wanted["metadata"].pop("resourceVersion", None)
        if version is not None:
            self._check_version(found, version)
        base = copy.deepcopy(found or {})
        _strip(base, self.applied.get(key, {}), wanted)
        made = self.put(key, _merged(base, wanted))
        self.applied[key] = copy.deepcopy(wanted)
        return made

    def merge(self, key: Key, change: Object) -> Object:
        """JSON Merge Patch (RFC 7386)."""
        found, change = self.get(key), copy.deepcopy(change)
        version = change.get("metadata", {}).pop("resourceVersion", None)
        if version is not None:
            self._check_version(found, version)
        return self.put(key, _merged(found, change))

    def drop(self, key: Key) -> None:
        """Removes an object, whatever holds it."""
        found = self.objects.pop(key, None)
        self.applied.pop(key, None)
        if found is not None:
            self._happened("DELETED", key, found)
            del self.objects[key]

    def since(self, version: int) -> Iterable[Event]:
        """Returns what happened after `version`."""
        if version < self.forgotten:
            raise RefusedError(410, "Expired")
        return [event for event in self.events if event.version > version]

    def forget(self) -> None:
        """Knows nothing any more of what happened until now."""
        self.forgotten = self.version
        self.events.clear()

    def _happened(self, kind: str, key: Key, found: Object) -> None:
        self.version += 1
        found["metadata"]["resourceVersion"] = str(self.version)
        self.objects[key] = found
        self.events.append(Event(self.version, kind, key, copy.deepcopy(found)))

    def _check_namespace(self, key: Key) -> None:
        if not key.namespace:
            return
        space = self.objects.get(Key("namespaces", "", key.namespace))
        if space is None:
            raise RefusedError(404, "NotFound")
        if space["metadata"].get("deletionTimestamp"):
            raise RefusedError(403, "Forbidden")

    @staticmethod
    def _check_version(found: Object | None, version: str) -> None:
        if found is None or found["metadata"]["resourceVersion"] != version:
            raise RefusedError(409, "Conflict")

    @staticmethod
    def _check_size(found: Object | None, fresh: Object) -> None:
        """A volume never shrinks: CloudNativePG's own check."""
        if found is not None and fresh.get("kind") == "Cluster":
            sizes = (one["spec"]["storage"]["size"].removesuffix("Gi") for one in (found, fresh))
            before, after = map(int, sizes)
            if after < before:
                raise RefusedError(422, "Invalid")


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def has_labels(found: Object, selector: str) -> bool:
    labels = found["metadata"].get("labels") or {}
    pairs = (one.partition("=") for one in selector.split(",") if one)
    return all(labels.get(name) == value for name, _, value in pairs)


def pages(found: list[Object], size: int, start: str) -> tuple[list[Object], str]:
    """Returns one page, and where the next one begins."""
    begin = int(start or 0)
    end = begin + size
    return list(itertools.islice(found, begin, end)), str(end) if end < len(found) else ""


def _merged(base: Any, change: Any) -> Any:
    if not isinstance(change, Mapping):
        return copy.deepcopy(change)
    made = dict(base) if isinstance(base, Mapping) else {}
    for name, value in change.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = _merged(made.get(name), value)
    return made


def _strip(base: Object, before: Object, wanted: Object) -> None:
    """Removes from `base` what was applied before and is not wanted any more."""
    for name, value in before.items():
        if name not in wanted:
            base.pop(name, None)
        elif isinstance(value, dict) and isinstance(base.get(name), dict):
            _strip(base[name], value, wanted[name])
