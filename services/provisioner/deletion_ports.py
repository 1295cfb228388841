"""What deletions need of others; `server.py` chooses who gives it. Methods raise BulkheadError."""

from collections.abc import Mapping
from typing import Any, Protocol

from services.provisioner.domain import ResourceKind
from services.provisioner.ports import Bearer
from services.provisioner.work import Work
from services.shared.ids import DeploymentId, TenantId

# What another service says of what it erased, as the certificate will have it.
Receipt = Mapping[str, Any]


class TenantKeys(Protocol):
    """Whose keys are whose: auth."""

    async def delegate(self, bearer: Bearer, purpose: str) -> Bearer:
        """Returns a key with which a job of the provisioner deletes the bearer's tenant."""
        ...

    async def close(self, bearer: Bearer) -> Receipt:
        """Ends every key and session of the tenant but the presented job's key, everywhere."""
        ...

    async def erase(self, bearer: Bearer) -> Receipt:
        """Erases every row of the closed tenant."""
        ...

    async def knows(self, bearer: Bearer, deployment: DeploymentId) -> bool:
        """Returns whether keys of the deployment could be valid."""
        ...


class TenantRoutes(Protocol):
    """Which host belongs to whom: app_proxy."""

    async def erase(self, bearer: Bearer) -> Receipt:
        """Makes every host of the tenant unknown, and lets none be put again."""
        ...

    async def knows(self, bearer: Bearer, host: str) -> bool:
        """Returns whether the front door answers for the host."""
        ...


class TenantLoans(Protocol):
    """What is lent to deployments: credentials."""

    async def release(self, bearer: Bearer, deployment: DeploymentId) -> int:
        """Ends every binding of the deployment; returns how many there were."""
        ...

    async def erase(self, bearer: Bearer) -> Receipt:
        """Revokes the tenant's grants at their providers, and erases every row of it.

        What could not be revoked is told as `unrevoked`.
        """
        ...


class TenantCounters(Protocol):
    """What was counted of deployments' calls: ratelimit."""

    async def release(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Erases every counter of the deployment."""
        ...

    async def erase(self, bearer: Bearer) -> Receipt:
        """Erases every counter of the tenant's deployments."""
        ...


class Signer(Protocol):
    """Signs certificates."""

    def sign(self, document: Mapping[str, Any]) -> str:
        """Returns the document as a JWS in compact form."""
        ...


class Forgetting(Protocol):
    """Remembers something of tenants."""

    def forget(self, tenant: TenantId) -> None:
        """Drops what is remembered of the tenant."""
        ...


class Ending(Protocol):
    """The end of one kind of resource; each of it is safe to repeat.

    Raises BulkheadError or DriverError: it could not be done now, and a later try may succeed.
    """

    @property
    def kind(self) -> ResourceKind:
        """What it ends."""
        ...

    async def close(self, work: Work) -> bool:
        """Returns whether nobody gets at the resource any more; it is not destroyed yet.

        False: only its destruction ends access to it.
        """
        ...

    async def destroy(self, work: Work) -> Mapping[str, Any]:
        """Destroys the resource; returns what its end is told with."""
        ...

    async def left(self, work: Work) -> str:
        """Returns what is left of the resource, in words; empty when nothing is.

        It looks for itself, and takes nothing for granted that `destroy` has said.
        """
        ...
