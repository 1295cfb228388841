"""Deleting a deployment (P-39): cut off, destroyed, looked after, certified."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

import structlog

from services.provisioner import (
    certificate_store,
    deletion_store,
    operation_store,
    resource_store,
    store,
)
from services.provisioner.certificate_documents import of_deployment
from services.provisioner.deletion_ports import Ending, Signer
from services.provisioner.domain import (
    DeploymentState,
    Operation,
    OperationState,
    Resource,
    ResourceKind,
    Step,
)
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.work import Action, Work, rest
from services.shared.errors import BulkheadError
from services.shared.postgres import Database

# What is destroyed in which step, in this order; keys and route were before.
_STEPS: Final[Mapping[Step, ResourceKind]] = MappingProxyType(
    {
        Step.RELEASING: ResourceKind.LOANS,
        Step.UNCOUNTING: ResourceKind.COUNTERS,
        Step.DESTROYING: ResourceKind.DATABASE,
        Step.EMPTYING: ResourceKind.BUCKET,
        Step.DISCARDING: ResourceKind.BACKUPS,
        Step.SHREDDING: ResourceKind.SECRETS,
    }
)
_FIRST: Final = frozenset({Step.RETIRING, Step.UNROUTING})
# What nobody gets at any more when the deployment's keys are dead and it is being deleted.
OPENED_BY_KEYS: Final = (
    ResourceKind.KEYS,
    ResourceKind.LOANS,
    ResourceKind.COUNTERS,
    ResourceKind.SECRETS,
    ResourceKind.BACKUPS,
)


class StillThereError(DriverError):
    """Something of a deployment is left."""


class Deleting:
    """The plan of `OperationKind.DELETE`.

    What cannot be destroyed now holds up nothing else: each resource is tried, what is left is told
    of by its own row, and the verification fails, so that all is tried again, for ever.
    """

    def __init__(
        self, database: Database, endings: Iterable[Ending], signer: Signer, issuer: str
    ) -> None:
        self._database = database
        self._endings = {ending.kind: ending for ending in endings}
        self._signer = signer
        self._issuer = issuer

    def steps(self, operation: Operation) -> Sequence[tuple[Step, Action]]:
        """Returns what is still to be done; see `work.Plan`."""
        begin = operation.step if operation.step in _FIRST else Step.RELEASING
        destroying = [(step, partial(self._destroy, kind)) for step, kind in _STEPS.items()]
        last = (Step.VERIFYING, self._verify), (Step.CERTIFYING, self._certify)
        return rest([*self.first_steps(), *destroying, *last], begin)

    def first_steps(self) -> Sequence[tuple[Step, Action]]:
        """Returns those that are taken before the call returns: nobody gets in any more."""
        return (Step.RETIRING, self._retire), (Step.UNROUTING, self._unroute)

    async def give_up(self, work: Work) -> None:
        """Does nothing: what is to be deleted stays so, and asking again begins anew."""

    async def _retire(self, work: Work) -> None:
        """Ends every key of the deployment, and with them the ways to what only they open."""
        details = await self._endings[ResourceKind.KEYS].destroy(work)
        await self._write_ended(work, ResourceKind.KEYS, details, closed=OPENED_BY_KEYS)

    async def _unroute(self, work: Work) -> None:
        """Makes the host unknown, and ends whoever is in the database or the bucket."""
        details = await self._endings[ResourceKind.ROUTE].destroy(work)
        await self._write_ended(work, ResourceKind.ROUTE, details, closed=[ResourceKind.ROUTE])
        kinds = await self._undestroyed(work)
        tried = await asyncio.gather(*(self._closed(kind, work) for kind in kinds))
        closed = [kind for kind, done in zip(kinds, tried, strict=True) if done]
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await resource_store.mark_access_revoked(
                connection, work.deployment.deployment_id, closed
            )

    async def _write_ended(
        self,
        work: Work,
        kind: ResourceKind,
        details: Mapping[str, Any],
        *,
        closed: Iterable[ResourceKind] = (),
    ) -> None:
        here = work.deployment.deployment_id
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await resource_store.mark_access_revoked(connection, here, closed)
            await resource_store.mark_destroyed(connection, here, kind, details)

    async def _closed(self, kind: ResourceKind, work: Work) -> bool:
        """Returns whether nobody gets at the resource any more; its end does not wait for that."""
        try:
            return await self._endings[kind].close(work)
        except (BulkheadError, DriverError) as error:
            _log(work, kind, error)
            return False

    async def _destroy(self, kind: ResourceKind, work: Work) -> None:
        if kind not in await self._undestroyed(work):
            return
        try:
            details = await self._endings[kind].destroy(work)
        except (BulkheadError, DriverError) as error:
            _log(work, kind, error)
            await self._write_left(work, {kind: _words(error)})
        else:
            await self._write_ended(work, kind, details)

    async def _verify(self, work: Work) -> None:
        """Looks after every resource.

        Raises:
            StillThereError: something is left; it says what.
        """
        for kind in (ResourceKind.KEYS, ResourceKind.ROUTE):
            # What could not be looked after is destroyed again, as the others are in their steps.
            await self._destroy(kind, work)
        resources = await self._resources(work)
        reasons = await asyncio.gather(*(self._left(each, work) for each in resources))
        found = {
            each.kind: reason for each, reason in zip(resources, reasons, strict=True) if reason
        }
        gone = [each.kind for each in resources if each.kind not in found]
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await deletion_store.mark_verified(connection, work.deployment.deployment_id, gone)
        if found:
            await self._write_left(work, found)
            raise StillThereError("; ".join(f"{kind}: {why}" for kind, why in found.items()))

    async def _left(self, resource: Resource, work: Work) -> str:
        """Returns what is left of the resource, in words; empty when nothing is."""
        ending = self._endings.get(resource.kind)
        if ending is None:
            return "nobody here can end it"
        if resource.destroyed_time is None:
            return resource.reason or "it is not destroyed yet"
        try:
            return await ending.left(work)
        except (BulkheadError, DriverError) as error:
            _log(work, resource.kind, error)
            return _words(error)

    async def _write_left(self, work: Work, reasons: Mapping[ResourceKind, str]) -> None:
        """Writes why these are still there; they are to be destroyed again."""
        structlog.get_logger().warning(
            "resources left",
            operation_id=work.operation.operation_id,
            deployment_id=work.deployment.deployment_id,
            retries=work.operation.retries,
            left={str(kind): reason for kind, reason in reasons.items()},
        )
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await deletion_store.mark_left(connection, work.deployment.deployment_id, reasons)

    async def _certify(self, work: Work) -> None:
        """Issues the certificate in the same moment in which the deployment is deleted."""
        operation, here = work.operation, work.deployment.deployment_id
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await store.get_deployment(connection, here, lock=True)
            resources = (await resource_store.list_of(connection, [here]))[here]
            issued = await certificate_store.now(connection)
            certificate = self._signer.sign(
                of_deployment(self._issuer, operation, resources, issued)
            )
            await certificate_store.issue(connection, operation.operation_id, certificate)
            await operation_store.end(
                connection, operation.operation_id, OperationState.SUCCEEDED, ""
            )
            await store.set_state(connection, here, DeploymentState.DELETED)

    async def _resources(self, work: Work) -> Sequence[Resource]:
        here = work.deployment.deployment_id
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            return (await resource_store.list_of(connection, [here]))[here]

    async def _undestroyed(self, work: Work) -> list[ResourceKind]:
        """Returns what is still to be destroyed, and can be."""
        return [
            each.kind
            for each in await self._resources(work)
            if each.destroyed_time is None and each.kind in self._endings
        ]


def _words(error: BulkheadError | DriverError) -> str:
    return error.message if isinstance(error, BulkheadError) else str(error)


def _log(work: Work, kind: ResourceKind, error: Exception) -> None:
    structlog.get_logger().warning(
        "resource left",
        operation_id=work.operation.operation_id,
        kind=kind,
        error=type(error).__name__,
    )
