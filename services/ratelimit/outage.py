"""Limits that this process enforces by itself, while Valkey is away (P-05).

Each call counts as one of every replica: who is one of three takes three calls out of the burst,
and three of what is left of the month. So the sum over all of them stays within the limit, however
the calls are spread over them, and whatever comes of dividing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from services.ratelimit.domain import Counters, Decision, Reading, Take, decide, undecided
from services.ratelimit.gcra import Bucket, Ceiling
from services.ratelimit.ledger import LastSeen, Start
from services.ratelimit.months import month_at
from services.shared.ids import DeploymentId


class OwnUse(Protocol):
    """Remembers what was admitted here."""

    def add(self, take: Take, month: str, floor: int) -> None:
        """Counts an admitted take."""
        ...


class Rooms(Protocol):
    """Remembers how much room the bursts had."""

    def last_seen(self, deployment_id: DeploymentId, month: str) -> LastSeen | None:
        """Returns the room that was last read; None when none is remembered."""
        ...


@dataclass(slots=True)
class _Local:
    start: Start
    # Reckoned with each call as one of every replica.
    counters: Counters
    # Calls admitted here since the outage began.
    taken: int = 0


class Outage:
    """The decisions of one process from the moment when it lost Valkey.

    A bucket begins with no more room than is known to be there. A process that was alone knows of
    all calls since `alone_since_us`: what it read of a deployment since then holds; of others, all
    it knows is that the bucket was full by then at most. One of several does not know what the
    others admitted last: its buckets begin without room, at the moment when the outage does. So
    an outage, however many follow each other, adds nothing to the burst.
    """

    def __init__(
        self, own: OwnUse, rooms: Rooms, began_us: int, alone_since_us: int | None
    ) -> None:
        self._own = own
        self._rooms = rooms
        self._full_at_us = began_us if alone_since_us is None else alone_since_us
        self._alone = alone_since_us is not None
        self._month = ""
        self._local: dict[DeploymentId, _Local] = {}

    @property
    def month(self) -> str:
        """The month that is counted, as `2026-11`."""
        return self._month

    def unknown(self, takes: Sequence[Take], now_us: int) -> list[DeploymentId]:
        """Returns the deployments of which it is not known what the month counts from."""
        self._turn(now_us)
        wanted = {take.deployment_id: None for take in takes}
        return [deployment_id for deployment_id in wanted if deployment_id not in self._local]

    def learn(
        self, starts: Mapping[DeploymentId, Start], takes: Sequence[Take], month: str
    ) -> None:
        """Begins to count `month` of deployments from what is known of it."""
        if month != self._month:
            return
        for take in takes:
            deployment_id = take.deployment_id
            if deployment_id in starts and deployment_id not in self._local:
                start = starts[deployment_id]
                bucket = self._first_bucket(take)
                counters = Counters(bucket, start.floor + start.to_replay)
                self._local[deployment_id] = _Local(start, counters)

    def decide(self, takes: Sequence[Take], replicas: int, now_us: int) -> list[Reading]:
        """Returns one reading per take, in order; what is admitted is remembered as used.

        Undecided are those of which it is not known what the month counts from.
        """
        self._turn(now_us)
        return [self._decide(take, replicas, now_us) for take in takes]

    def _decide(self, take: Take, replicas: int, now_us: int) -> Reading:
        local = self._local.get(take.deployment_id)
        if local is None:
            return undecided(now_us, month_at(now_us))
        shared = take._replace(cost=take.cost * replicas)
        local.counters, reading = decide(local.counters, shared, now_us)
        if reading.decision is Decision.ALLOWED and take.cost:
            local.taken += take.cost
            self._own.add(take, self._month, local.start.floor)
        used = local.start.floor + local.start.to_replay + local.taken
        return reading._replace(used=used, burst_remaining=reading.burst_remaining // replicas)

    def _first_bucket(self, take: Take) -> Bucket:
        ceiling = take.limits.ceiling
        seen = self._rooms.last_seen(take.deployment_id, self._month) if self._alone else None
        if seen is None or seen.at_us < self._full_at_us:
            return _bucket(ceiling, ceiling.burst, self._full_at_us)
        return _bucket(ceiling, ceiling.burst - seen.burst_remaining, seen.at_us)

    def _turn(self, now_us: int) -> None:
        month = month_at(now_us).name
        if month != self._month:
            # A new month counts from what is known of it; the bursts begin anew without room.
            if self._month:
                self._full_at_us, self._alone = now_us, False
            self._month = month
            self._local.clear()


def _bucket(ceiling: Ceiling, calls: int, at_us: int) -> Bucket:
    return Bucket(at_us + calls * ceiling.interval_us, ceiling.interval_us)
