"""Bounds those who wait, so that nobody's crowd keeps out anybody else (P-38)."""

from collections.abc import Hashable
from typing import Generic, TypeVar

Place = TypeVar("Place", bound=Hashable)
Member = TypeVar("Member", bound=Hashable)


class Crowd(Generic[Place, Member]):
    """Who waits at each place; the newest is always let in, and the oldest gives way.

    Each place has a bound, and all of them together have one: beyond that the place with the most
    gives way. Therefore whoever crowds one place pushes out nobody at a place with fewer.
    """

    def __init__(self, at_each: int, at_all: int) -> None:
        self._at_each = at_each
        self._at_all = at_all
        self._count = 0
        # The members of each place in the order of their coming; no place is without any.
        self._places: dict[Place, dict[Member, None]] = {}

    def enter(self, place: Place, member: Member) -> Member | None:
        """Lets `member` in; returns who had to give way, and belongs to it no more."""
        members = self._places.setdefault(place, {})
        members[member] = None
        self._count += 1
        if len(members) > self._at_each:
            return self._push_out(place)
        if self._count > self._at_all:
            return self._push_out(max(self._places, key=lambda one: len(self._places[one])))
        return None

    def leave(self, place: Place, member: Member) -> None:
        """Lets `member` go, if it is there."""
        members = self._places.get(place, {})
        if member not in members:
            return
        del members[member]
        self._count -= 1
        if not members:
            del self._places[place]

    def _push_out(self, place: Place) -> Member:
        oldest = next(iter(self._places[place]))
        self.leave(place, oldest)
        return oldest
