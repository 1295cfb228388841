"""The use cases of the ratelimit service."""

from collections.abc import Sequence
from typing import Protocol

from opentelemetry import metrics

from services.ratelimit.domain import (
    Decision,
    Item,
    Limits,
    PlanLimits,
    Reading,
    Take,
    Usage,
    checked_items,
)
from services.shared.errors import InvalidFieldError, NotFoundError
from services.shared.ids import DeploymentId
from services.shared.principal import KeyKind, Principal


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
        self._decisions = metrics.get_meter("bulkhead").create_counter(
            "bulkhead.ratelimit.decisions", unit="{decision}"
        )

    async def acquire(self, items: list[Item]) -> list[tuple[Limits, Reading] | None]:
        """Returns the limits and the reading per item, None where no deployment key is presented.

        Raises:
            InvalidFieldError: an item cannot be decided; then none was.
            UnavailableError: keys or counters cannot be asked.
        """
        digests = [item.key_digest for item in checked_items(items)]
        principals = await self._keys.resolve_all(digests)
        takes = [
            self._take(principal, item.cost)
            for principal, item in zip(principals, items, strict=True)
        ]
        wanted = [take for take in takes if take is not None]
        readings = iter(await self._counters.take(wanted) if wanted else ())
        results = [None if take is None else (take.limits, next(readings)) for take in takes]
        self._count(results)
        return results

    async def usage(self, principal: Principal, deployment_id: str) -> Usage:
        """Returns what the deployment has used; reading it takes nothing.

        Raises:
            InvalidFieldError: a tenant's key without a deployment.
            NotFoundError: the deployment is not the principal's.
            UnavailableError: the counters or auth are away.
        """
        deployment = await self._deployment(principal, deployment_id)
        limits = self._limits[principal.plan]
        (reading,) = await self._counters.take([Take(deployment, limits, 0)])
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

    def _count(self, results: Sequence[tuple[Limits, Reading] | None]) -> None:
        for result in results:
            decision = Decision.KEY_INVALID if result is None else result[1].decision
            self._decisions.add(1, {"decision": decision})

    def _take(self, principal: Principal | None, cost: int) -> Take | None:
        if principal is None or principal.kind is not KeyKind.DEPLOYMENT:
            return None
        if principal.deployment_id is None:
            return None
        return Take(principal.deployment_id, self._limits[principal.plan], cost)
