"""The use cases of the ratelimit service."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from opentelemetry import metrics

from services.ratelimit.domain import (
    NO_TENANT,
    Decision,
    Item,
    Limits,
    PlanLimits,
    Reading,
    Take,
    Usage,
    checked_items,
)
from services.ratelimit.leases import (
    Grant,
    LeaseItem,
    Return,
    Returned,
    Want,
    checked_returns,
    checked_wants,
    new_token,
)
from services.shared.errors import InvalidFieldError, NotFoundError, UnavailableError
from services.shared.ids import DeploymentId, TenantId
from services.shared.principal import KeyKind, Principal
from services.shared.recording import Labels, observing

_Holder = tuple[DeploymentId, Limits, TenantId]


class Keys(Protocol):
    """Says whose keys these are."""

    async def resolve_all(self, digests: Sequence[bytes]) -> Sequence[Principal | None]:
        """Returns one principal per digest, None for what is no valid key."""
        ...


class Counters(Protocol):
    """Decides takes next to the counters."""

    async def take(self, takes: Sequence[Take]) -> Sequence[Reading]:
        """Returns one reading per take, in order."""
        ...

    async def lease(self, wants: Sequence[Want]) -> Sequence[Grant]:
        """Returns one grant per want, in order."""
        ...

    async def give_back(self, returns: Sequence[Return]) -> Sequence[Returned | None]:
        """Returns what came back per lease, in order; None for what is no lease."""
        ...


class Deployments(Protocol):
    """Knows whose deployments are whose."""

    async def verify(self, deployment_id: DeploymentId) -> None:
        """Returns when the deployment is the caller's tenant's; NotFoundError otherwise."""
        ...


class Ratelimit:
    """Counts and bounds the calls of each deployment by itself (P-05)."""

    def __init__(
        self, limits: PlanLimits, keys: Keys, counters: Counters, deployments: Deployments
    ) -> None:
        self._limits = limits
        self._keys = keys
        self._counters = counters
        self._deployments = deployments
        # Counted here, and read when somebody looks: it is done for every call.
        self._decisions: Counter[Decision] = Counter()
        metrics.get_meter("bulkhead").create_observable_counter(
            "bulkhead.ratelimit.decisions", observing(self._read), unit="{decision}"
        )

    async def acquire(self, items: list[Item]) -> list[tuple[Limits, Reading] | None]:
        """Returns the limits and the reading per item, None where no deployment key is presented.

        Raises:
            InvalidFieldError: an item cannot be decided; then none was.
            UnavailableError: keys or counters cannot be asked.
        """
        holders = await self._holders([item.key_digest for item in checked_items(items)])
        takes = [
            None if holder is None else Take(*holder[:2], item.cost, holder[2])
            for holder, item in zip(holders, items, strict=True)
        ]
        wanted = [take for take in takes if take is not None]
        readings = iter(await self._counters.take(wanted) if wanted else ())
        results = [None if take is None else (take.limits, next(readings)) for take in takes]
        self._count(Decision.KEY_INVALID if each is None else each[1].decision for each in results)
        return results

    async def lease(self, items: list[LeaseItem]) -> list[Grant | None]:
        """Returns what is granted per item, None where no deployment key is presented.

        Raises:
            InvalidFieldError: an item cannot be decided; then none was.
            UnavailableError: keys or counters cannot be asked.
        """
        holders = await self._holders([item.key_digest for item in checked_wants(items)])
        wants = [
            None if holder is None else Want(*holder[:2], item.calls, new_token(), holder[2])
            for holder, item in zip(holders, items, strict=True)
        ]
        wanted = [want for want in wants if want is not None]
        grants = iter(await self._counters.lease(wanted) if wanted else ())
        return [None if want is None else next(grants) for want in wants]

    async def give_back(self, items: list[Return]) -> list[int]:
        """Returns how many calls came back per lease; 0 for one that ended, or never was.

        Raises:
            InvalidFieldError: an item has no count of calls; then none came back.
            UnavailableError: the counters cannot be asked.
        """
        returned = await self._counters.give_back(checked_returns(items))
        return [0 if each is None else each.calls for each in returned]

    async def usage(self, principal: Principal, deployment_id: str) -> Usage:
        """Returns what the deployment has used; reading it takes nothing.

        Raises:
            InvalidFieldError: a tenant's key without a deployment.
            NotFoundError: the deployment is not the principal's.
            UnavailableError: the counters or auth are away.
        """
        deployment = await self._deployment(principal, deployment_id)
        limits = self._limits[principal.plan]
        (reading,) = await self._counters.take(
            [Take(deployment, limits, 0, principal.tenant_id or NO_TENANT)]
        )
        if reading.decision is Decision.UNAVAILABLE:
            raise UnavailableError("what was used of the month cannot be found out now")
        return Usage(deployment, limits, reading)

    async def _deployment(self, principal: Principal, deployment_id: str) -> DeploymentId:
        if principal.kind is KeyKind.DEPLOYMENT and principal.deployment_id is not None:
            if deployment_id not in ("", principal.deployment_id):
                raise NotFoundError("deployment")
            return principal.deployment_id
        if not deployment_id:
            raise InvalidFieldError("deployment_id", "is needed with a tenant's key")
        await self._deployments.verify(DeploymentId(deployment_id))
        return DeploymentId(deployment_id)

    def _count(self, decisions: Iterable[Decision]) -> None:
        self._decisions.update(decisions)

    def _read(self) -> Iterable[tuple[float, Labels]]:
        decided = self._decisions.copy()
        return [(number, {"decision": decision}) for decision, number in decided.items()]

    async def _holders(self, digests: list[bytes]) -> list[_Holder | None]:
        """Returns whose each key is, None where it is no valid deployment key."""
        return [self._holder(each) for each in await self._keys.resolve_all(digests)]

    def _holder(self, principal: Principal | None) -> _Holder | None:
        if principal is None or principal.kind is not KeyKind.DEPLOYMENT:
            return None
        if principal.deployment_id is None:
            return None
        limits = self._limits[principal.plan]
        return principal.deployment_id, limits, principal.tenant_id or NO_TENANT
