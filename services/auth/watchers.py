"""Those who watch revocations: what they acknowledge, and the trust that they are leased for it."""

from collections.abc import Sequence
from datetime import timedelta

from services.auth.domain import Acknowledgement, Lease, Revocation
from services.auth.revocation_store import hold_last_revocation, revocations_after
from services.auth.watcher_store import lease_trust
from services.shared.coalesce import Coalescer
from services.shared.postgres import Database

# More than this to forget, and it is less work to forget everything.
_MOST_TOLD = 10_000


class Watchers:
    """Leases trust to watchers; concurrent acknowledgements are written together."""

    def __init__(self, database: Database, lease: timedelta) -> None:
        self._database = database
        self._lease = lease
        self.acknowledge: Coalescer[Acknowledgement, Lease] = Coalescer(
            self._acknowledge, flights=1
        )

    async def _acknowledge(self, given: Sequence[Acknowledgement]) -> list[Lease]:
        async with self._database.service() as connection:
            last = await hold_last_revocation(connection)
            await lease_trust(connection, _latest(given), last, self._lease)
            since = min((each.sequence for each in given if _tellable(each, last)), default=last)
            revocations = (
                await revocations_after(connection, since, _MOST_TOLD) if since < last else []
            )
        return [self._told(each, last, revocations) for each in given]

    def _told(self, given: Acknowledgement, last: int, revocations: Sequence[Revocation]) -> Lease:
        news = tuple(each for each in revocations if each.sequence > given.sequence)
        named = sum(len(each.key_ids) for each in news)
        # Not all of them there: some are not kept any more, or they are of another time.
        if len(news) != last - given.sequence or named > _MOST_TOLD:
            return Lease((), forget_all=True, sequence=last, length=self._lease)
        return Lease(news, forget_all=False, sequence=last, length=self._lease)


def _tellable(given: Acknowledgement, last: int) -> bool:
    return 0 < last - given.sequence <= _MOST_TOLD


def _latest(given: Sequence[Acknowledgement]) -> list[Acknowledgement]:
    """Returns one of each watcher: a call that was repeated may overtake the one before."""
    latest: dict[tuple[str, str], Acknowledgement] = {}
    for each in given:
        known = latest.get((each.peer, each.watcher_id))
        if known is None or known.sequence < each.sequence:
            latest[each.peer, each.watcher_id] = each
    return list(latest.values())
