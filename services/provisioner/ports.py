"""What the provisioner needs of others, in its own words; `server.py` chooses who gives it."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, TypeAlias

from services.provisioner.domain import Deployment, RouteState
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection


@dataclass(frozen=True, slots=True)
class Bearer:
    """A key that is presented to other services on a tenant's behalf."""

    key: str = field(repr=False)
    # When a new one is to be asked for, presenting this one; None: not known.
    renew_time: datetime | None = None


class Registry(Protocol):
    """Whose deployments are whose, and the keys of both. All methods raise BulkheadError."""

    async def delegate(self, bearer: Bearer, purpose: str) -> Bearer:
        """Returns a key with which a job of the provisioner acts for the bearer's tenant."""
        ...

    async def register(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Makes the deployment the bearer's tenant's, so that keys can be issued for it."""
        ...

    async def retire(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Revokes every key of the deployment and lets none be issued again."""
        ...


class Routes(Protocol):
    """Which host belongs to which deployment. All methods raise BulkheadError."""

    async def put(self, bearer: Bearer, deployment: Deployment, state: RouteState) -> None:
        """Writes the deployment's route."""
        ...

    async def delete(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Makes the deployment's host unknown."""
        ...


class Loans(Protocol):
    """What others' connections are lent to which deployment. All methods raise BulkheadError."""

    async def suspend(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Lets nothing be vended to the deployment; its bindings stay."""
        ...

    async def resume(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Lets be vended to the deployment again."""
        ...

    async def end(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Ends every binding of the deployment."""
        ...


class Counters(Protocol):
    """What is counted of deployments' use. All methods raise BulkheadError."""

    async def release(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Erases every counter of the deployment."""
        ...


# What one worker at a time works on: a deployment, or a tenant that is being deleted.
Subject: TypeAlias = DeploymentId | TenantId


class Locks(Protocol):
    """One worker at a time on a deployment, or on a tenant's deletion, across all replicas."""

    def hold(
        self, subject: Subject, patience: timedelta, *, caller: TenantId | None = None
    ) -> AbstractAsyncContextManager[None]:
        """Holds the subject's lock.

        What is done for a `caller` waits until few enough of its calls hold any (P-38).

        Raises:
            UnavailableError: someone else holds it for longer than `patience`; or the caller holds
                too many for long.
        """
        ...


class Queue(Protocol):
    """Tells the workers which deployments, and which tenants, have work to be done."""

    async def enqueue(self, connection: Connection, subject: Subject) -> None:
        """Enters the subject; it counts when the transaction commits. Call it last in it."""
        ...

    async def enqueue_all(self, connection: Connection, subjects: Sequence[Subject]) -> None:
        """Enters the subjects, as `enqueue` does one."""
        ...
