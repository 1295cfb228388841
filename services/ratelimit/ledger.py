"""What this process knows and has not yet written down: counts of months, and its own admissions.

`Ledger` is of what was seen in Valkey; `OwnUse` of what was admitted while Valkey was away.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from services.ratelimit.domain import Decision, Limits, Reading, Take
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, TenantId


class MonthUnknownError(UnavailableError):
    """Neither Valkey nor Postgres can say what was used of the month: nothing is admitted."""

    def __init__(self) -> None:
        super().__init__("what was used of the month cannot be found out")


class Start(NamedTuple):
    """From what a month counts on while Valkey is away: its durable count, and what comes to it."""

    floor: int
    to_replay: int


class Counted(NamedTuple):
    """A month's count as it was seen in Valkey; `month` as `2026-11`."""

    deployment_id: DeploymentId
    month: str
    tenant_id: TenantId
    used: int


class LastSeen(NamedTuple):
    """The calls that a deployment's burst had room for, at a moment of this process's clock."""

    burst_remaining: int
    at_us: int


class LocalUse(NamedTuple):
    """What one process admitted without Valkey in a month, since it started.

    `replayed` of it are in the durable count of the month, which is at least `floor` calls.
    `limits` are known to the process itself alone.
    """

    replica_id: str
    deployment_id: DeploymentId
    month: str
    tenant_id: TenantId
    used: int
    replayed: int
    floor: int
    limits: Limits | None


class Replayed(NamedTuple):
    """All of a local use is in Valkey, which counts `counted` calls of the month with it."""

    use: LocalUse
    counted: int


@dataclass(slots=True)
class _Seen:
    tenant_id: TenantId
    used: int
    burst_remaining: int
    at_us: int


_Place = tuple[str, DeploymentId]


class Ledger:
    """The highest count that this process saw of each month of each deployment.

    The highest, since a count only falls when leased calls come back: to remember it counts at
    most the calls too many that were on lease.
    """

    def __init__(self) -> None:
        self._seen: dict[_Place, _Seen] = {}
        self._unsaved: set[_Place] = set()

    def note(
        self, deployment_id: DeploymentId, tenant_id: TenantId, reading: Reading, now_us: int
    ) -> None:
        """Remembers what was read in Valkey just now, by this process's clock."""
        if reading.decision is Decision.UNAVAILABLE:
            return
        place = (reading.month.name, deployment_id)
        seen = self._seen.get(place)
        if seen is None:
            seen = self._seen[place] = _Seen(tenant_id, 0, 0, 0)
        seen.burst_remaining, seen.at_us = reading.burst_remaining, now_us
        if reading.used > seen.used:
            seen.used = reading.used
            self._unsaved.add(place)

    def highest(self, deployment_id: DeploymentId, month: str) -> int | None:
        """Returns the highest count seen of the month; None when none is remembered."""
        seen = self._seen.get((month, deployment_id))
        return None if seen is None else seen.used

    def last_seen(self, deployment_id: DeploymentId, month: str) -> LastSeen | None:
        """Returns the room that was last read; None when none is remembered."""
        seen = self._seen.get((month, deployment_id))
        return None if seen is None else LastSeen(seen.burst_remaining, seen.at_us)

    def unsaved(self) -> list[Counted]:
        """Returns the counts that grew since they were saved."""
        return [
            Counted(deployment_id, month, self._seen[month, deployment_id].tenant_id, used)
            for month, deployment_id in self._unsaved
            for used in (self._seen[month, deployment_id].used,)
        ]

    def saved(self, counts: Iterable[Counted]) -> None:
        """Remembers that these were saved; what grew meanwhile stays unsaved."""
        for counted in counts:
            place = (counted.month, counted.deployment_id)
            seen = self._seen.get(place)
            if seen is None or seen.used == counted.used:
                self._unsaved.discard(place)

    def forget(self, before_us: int) -> None:
        """Drops what is saved and was not read since."""
        idle = [place for place, seen in self._seen.items() if seen.at_us < before_us]
        for place in idle:
            if place not in self._unsaved:
                del self._seen[place]

    def deployments_of(self, tenant_id: TenantId) -> set[DeploymentId]:
        """Returns the tenant's deployments of which a count is remembered."""
        return {place[1] for place, seen in self._seen.items() if seen.tenant_id == tenant_id}

    def erase(self, deployments: Container[DeploymentId]) -> None:
        """Drops every count of the deployments, saved or not."""
        for place in [place for place in self._seen if place[1] in deployments]:
            del self._seen[place]
            self._unsaved.discard(place)


@dataclass(slots=True)
class _Own:
    tenant_id: TenantId
    limits: Limits
    floor: int
    used: int = 0
    saved: int = 0
    in_valkey: int = 0
    settled: int = 0
    counted: int = 0

    def as_use(self, replica_id: str, place: _Place) -> LocalUse:
        month, deployment_id = place
        return LocalUse(
            replica_id,
            deployment_id,
            month,
            self.tenant_id,
            self.used,
            self.settled,
            self.floor,
            self.limits,
        )


class OwnUse:
    """What this process admitted without Valkey: totals since its start, so that they only grow."""

    def __init__(self, replica_id: str) -> None:
        self._replica_id = replica_id
        self._own: dict[_Place, _Own] = {}

    def add(self, take: Take, month: str, floor: int) -> None:
        """Counts an admitted take; `floor` calls of the month are counted elsewhere."""
        place = (month, take.deployment_id)
        own = self._own.get(place)
        if own is None:
            own = self._own[place] = _Own(take.tenant_id, take.limits, floor)
        own.used += take.cost
        own.limits = take.limits
        own.floor = max(own.floor, floor)

    def unsaved(self) -> list[LocalUse]:
        """Returns the totals that grew since they were saved."""
        return [self._use(place) for place, own in self._own.items() if own.used > own.saved]

    def saved(self, uses: Iterable[LocalUse]) -> None:
        """Remembers that these were saved."""
        for use in uses:
            if own := self._own.get((use.month, use.deployment_id)):
                own.saved = use.used

    def pending(self, deployment_id: DeploymentId, month: str) -> int:
        """Returns the calls that Valkey does not know of."""
        own = self._own.get((month, deployment_id))
        return 0 if own is None else own.used - own.in_valkey

    def counted(self, deployment_id: DeploymentId, month: str) -> int | None:
        """Returns what Valkey counted when it was last told; None when it was not."""
        own = self._own.get((month, deployment_id))
        return own.counted if own and own.in_valkey else None

    def to_replay(self) -> list[LocalUse]:
        """Returns the totals that Valkey does not know of."""
        return [self._use(place) for place, own in self._own.items() if own.used > own.in_valkey]

    def replayed(self, done: Iterable[Replayed]) -> None:
        """Remembers that Valkey knows of these."""
        for use, counted in done:
            if own := self._own.get((use.month, use.deployment_id)):
                own.in_valkey, own.counted = use.used, counted

    def to_settle(self) -> list[Replayed]:
        """Returns what Valkey knows of and the durable counts do not."""
        return [
            Replayed(self._use(place)._replace(used=own.in_valkey), own.counted)
            for place, own in self._own.items()
            if own.in_valkey > own.settled
        ]

    def settled(self, done: Iterable[Replayed]) -> None:
        """Remembers that the durable counts know of these."""
        for use, counted in done:
            if own := self._own.get((use.month, use.deployment_id)):
                own.settled, own.floor = use.used, max(own.floor, counted)

    def forget(self, month: str) -> None:
        """Drops what is settled of other months than `month`.

        Of this month nothing: a total that began anew could not be told from one known already.
        """
        done = [
            place
            for place, own in self._own.items()
            if place[0] != month and own.used == own.settled
        ]
        for place in done:
            del self._own[place]

    def deployments_of(self, tenant_id: TenantId) -> set[DeploymentId]:
        """Returns the tenant's deployments of which a total is remembered."""
        return {place[1] for place, own in self._own.items() if own.tenant_id == tenant_id}

    def erase(self, deployments: Container[DeploymentId]) -> None:
        """Drops every total of the deployments, replayed or not."""
        for place in [place for place in self._own if place[1] in deployments]:
            del self._own[place]

    def _use(self, place: _Place) -> LocalUse:
        return self._own[place].as_use(self._replica_id, place)
