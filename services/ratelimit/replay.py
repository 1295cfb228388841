"""Brings what was admitted without Valkey into its counters, each call once."""

from collections.abc import Sequence
from typing import Final, Protocol

from services.ratelimit.checkpoints import Checkpoints
from services.ratelimit.ledger import Counted, LocalUse, OwnUse, Replayed

REPLAYS_AT_ONCE: Final = 1_000


class Replaying(Protocol):
    """Counts in Valkey."""

    async def replay(self, uses: Sequence[LocalUse]) -> Sequence[Replayed]:
        """Returns what Valkey counts with each, in order."""
        ...

    async def check(self) -> None:
        """Returns when Valkey takes what is written; UnavailableError otherwise."""
        ...


class Others(Protocol):
    """Knows what other replicas admitted, those too that are no more."""

    async def to_replay(self, but: str, most: int) -> Sequence[LocalUse]:
        """Returns at `most` so many local uses that Valkey lacks, of all replicas `but` one."""
        ...

    async def save(
        self, counts: Sequence[Counted], uses: Sequence[LocalUse], done: Sequence[Replayed]
    ) -> None:
        """Writes down that what is `done` is in Valkey: all, or nothing."""
        ...


class Replay:
    """Replays own use and that of others. To repeat any of it changes nothing.

    First Valkey counts it, then one transaction writes down what Valkey counts with it and that it
    is counted: who dies between the two leaves it to the next one, who finds it counted already.
    """

    def __init__(
        self,
        valkey: Replaying,
        others: Others,
        own: OwnUse,
        checkpoints: Checkpoints,
        replica_id: str,
    ) -> None:
        self._valkey = valkey
        self._others = others
        self._own = own
        self._checkpoints = checkpoints
        self._replica_id = replica_id

    async def check(self) -> None:
        """Returns when Valkey takes what is written.

        Raises:
            UnavailableError: it does not.
        """
        await self._valkey.check()

    async def own(self) -> int:
        """Returns how many months of deployments were replayed, of this process's own use.

        Needs Valkey alone. It is written down with the next checkpoint.

        Raises:
            UnavailableError: Valkey is away.
        """
        uses = await self._with_floors(self._own.to_replay())
        self._own.replayed(await self._valkey.replay(uses))
        return len(uses)

    async def others(self) -> int:
        """Returns how many months of deployments were replayed, of other replicas' use.

        Raises:
            UnavailableError: Valkey or the durable counts are away.
        """
        replayed = 0
        while uses := await self._others.to_replay(self._replica_id, REPLAYS_AT_ONCE):
            await self._others.save((), (), await self._valkey.replay(uses))
            replayed += len(uses)
            if len(uses) < REPLAYS_AT_ONCE:
                break
        return replayed

    async def _with_floors(self, uses: Sequence[LocalUse]) -> list[LocalUse]:
        """Returns the uses with what their months count from by now, as far as it is known."""
        floors = {}
        for month in {use.month for use in uses}:
            wanted = [use.deployment_id for use in uses if use.month == month]
            for deployment_id, start in (await self._checkpoints.starts(wanted, month)).items():
                floors[deployment_id, month] = start.floor
        return [
            use._replace(floor=max(use.floor, floors.get((use.deployment_id, use.month), 0)))
            for use in uses
        ]
