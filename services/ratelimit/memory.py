"""What this process remembers of deployments: what it saw in Valkey, and what it admitted."""

import secrets
from collections.abc import Collection
from dataclasses import dataclass, field

from services.ratelimit.ledger import Ledger, OwnUse
from services.shared.ids import DeploymentId, TenantId


@dataclass(frozen=True, slots=True)
class Memory:
    """The ledgers of one process, under one random name."""

    replica_id: str
    ledger: Ledger = field(default_factory=Ledger)
    own: OwnUse = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", OwnUse(self.replica_id))

    @classmethod
    def new(cls) -> "Memory":
        """Returns an empty one under a new name."""
        return cls(secrets.token_hex(8))

    def deployments_of(self, tenant: TenantId) -> set[DeploymentId]:
        """Returns the tenant's deployments of which anything is remembered."""
        return self.ledger.deployments_of(tenant) | self.own.deployments_of(tenant)

    def erase(self, deployments: Collection[DeploymentId]) -> None:
        """Forgets everything about the deployments."""
        self.ledger.erase(deployments)
        self.own.erase(deployments)
