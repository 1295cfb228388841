"""Durable counts of months, for tests of what counts from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.shared.ids import DeploymentId


@dataclass
class KnownMonths:
    """Counts by deployment and month, in memory; and what was asked for."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    asked: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    async def floors(self, wanted: Sequence[DeploymentId], month: str) -> list[int]:
        self.asked.append((tuple(wanted), month))
        return [self.counts.get((deployment, month), 0) for deployment in wanted]
