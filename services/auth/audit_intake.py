"""Events that a service gathered before it recorded them, each with the key that it is of."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from services.auth.audit import AuditLog, new_event
from services.auth.audit_events import NewEvent
from services.auth.keys import Keys
from services.shared.coalesce import Coalescer
from services.shared.ids import AuditEventId, TenantId
from services.shared.principal import Principal

# So many chains does one call write at once: each takes a connection, and others need some too.
_MOST_CHAINS = 4


@dataclass(frozen=True, slots=True)
class Presented:
    """What was done with a key that was presented to the recording service."""

    # SHA-256 of the key.
    key_digest: bytes = field(repr=False)
    peer: str
    method: str
    resources: Mapping[str, str]
    reason: str
    trace_id: str


class AuditIntake:
    """Finds out whose events are, and writes them into the logs where they belong."""

    def __init__(self, keys: Keys, log: AuditLog) -> None:
        self._log = log

        async def resolve(digests: Sequence[bytes]) -> Sequence[Principal | None]:
            return (await keys.resolve(digests))[1]

        self._resolve: Coalescer[bytes, Principal | None] = Coalescer(resolve)

    async def record(self, presented: Sequence[Presented]) -> list[AuditEventId | None]:
        """Returns, in order, the id of each event; None where the key is not valid now.

        The events of one chain are written all or nothing, in order. An error says that those of
        some chain are not written; those of others may be.

        Raises:
            UnavailableError: the keys cannot be looked up, or a chain cannot be written, now.
        """
        principals = await self._principals({each.key_digest for each in presented})
        chains: dict[TenantId | None, list[NewEvent]] = {}
        event_ids: list[AuditEventId | None] = []
        for each in presented:
            principal = principals[each.key_digest]
            if principal is None or not _opens(principal, each.peer):
                event_ids.append(None)
                continue
            event = _event(principal, each)
            chains.setdefault(principal.tenant_id, []).append(event)
            event_ids.append(event.event_id)
        await self._write(chains)
        return event_ids

    async def _principals(self, digests: Iterable[bytes]) -> Mapping[bytes, Principal | None]:
        asked = list(digests)
        found = await asyncio.gather(*(self._resolve(digest) for digest in asked))
        return dict(zip(asked, found, strict=True))

    async def _write(self, chains: Mapping[TenantId | None, Sequence[NewEvent]]) -> None:
        places = asyncio.Semaphore(_MOST_CHAINS)

        async def write(tenant_id: TenantId | None, events: Sequence[NewEvent]) -> None:
            async with places:
                await self._log.write(tenant_id, events)

        # Each chain to its end: one that cannot be written leaves no other half done.
        ends = await asyncio.gather(
            *(write(tenant_id, events) for tenant_id, events in chains.items()),
            return_exceptions=True,
        )
        for end in ends:
            if end is not None:
                raise end


def _opens(principal: Principal, peer: str) -> bool:
    """Whether the key opens anything when `peer` presents it (P-30)."""
    return principal.bound_peer in (None, peer)


def _event(principal: Principal, each: Presented) -> NewEvent:
    return new_event(
        principal.key_id, each.peer, each.method, each.resources, each.trace_id, each.reason
    )
