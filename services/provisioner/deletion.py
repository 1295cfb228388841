"""Deleting a deployment: cut off at once, removed by the reconciler."""

from services.provisioner import certificate_store, operation_store, store
from services.provisioner.certificate_tokens import CertificateTokens, digest
from services.provisioner.domain import (
    LOCK_PATIENCE,
    Deployment,
    DeploymentState,
    Operation,
    OperationKind,
    OperationState,
    Step,
)
from services.provisioner.operations import Operations
from services.provisioner.plans.deleting import Deleting
from services.provisioner.ports import Bearer, Locks, Registry
from services.provisioner.work import Boundary, Moment, Work
from services.shared.errors import NotFoundError
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Database

# Keys and route may be alive while these are taken.
_CUTTING_OFF = frozenset({Step.RETIRING, Step.UNROUTING})


class Deletion:
    """Ends deployments, whatever state they are in."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        operations: Operations,
        registry: Registry,
        deleting: Deleting,
        tokens: CertificateTokens,
        boundary: Boundary,
    ) -> None:
        self._database = database
        self._locks = locks
        self._operations = operations
        self._registry = registry
        self._deleting = deleting
        self._tokens = tokens
        self._boundary = boundary

    async def delete(
        self, tenant: TenantId, caller: Bearer, deployment_id: DeploymentId
    ) -> tuple[Operation, str]:
        """Returns the operation that deletes the deployment, and what opens its certificate.

        Its keys and its route are dead then. Deleting twice answers with the first operation, begun
        anew if it had failed, and the same token. One that fails again and again gets a new key.

        Raises:
            NotFoundError: the tenant has no such deployment.
            UnavailableError: keys or route may still live; what was written down goes on by
                itself, and asking again is safe.
        """
        operation = await self._begun(tenant, deployment_id)
        if operation is None or operation.state is OperationState.FAILED:
            job = await self._registry.delegate(caller, f"delete {deployment_id}")
            operation = await self._begin(tenant, deployment_id, job)
        elif operation.retries and not operation.done:
            # What it fails for may be its key.
            job = await self._registry.delegate(caller, f"delete {deployment_id}")
            await self._renew(tenant, operation, job)
        if not _is_cut_off(operation):
            async with self._locks.hold(deployment_id, LOCK_PATIENCE, caller=tenant):
                operation = await self._cut_off(tenant, deployment_id, caller)
        return operation, self._tokens.of(operation.operation_id)

    async def _begun(self, tenant: TenantId, deployment_id: DeploymentId) -> Operation | None:
        async with self._database.tenant(tenant) as connection:
            _found(await store.get_deployment(connection, deployment_id))
            return await operation_store.of_kind(connection, deployment_id, OperationKind.DELETE)

    async def _begin(self, tenant: TenantId, deployment_id: DeploymentId, job: Bearer) -> Operation:
        """Writes operation and queue entry at once, and ends whatever is under way."""
        async with self._database.tenant(tenant) as connection:
            deployment = _found(await store.get_deployment(connection, deployment_id, lock=True))
            operation = await operation_store.of_kind(
                connection, deployment_id, OperationKind.DELETE
            )
            if operation is None:
                # Whatever else is under way ends here, and a rotation's overlap with it.
                await operation_store.supersede(
                    connection,
                    deployment_id,
                    OperationKind,
                    "the deployment was deleted before it was done",
                )
                await store.set_state(connection, deployment_id, DeploymentState.DELETING)
                operation = await self._operations.begin(
                    connection, deployment, OperationKind.DELETE, Step.RETIRING, job
                )
                token = self._tokens.of(operation.operation_id)
                await certificate_store.promise(connection, operation, digest(token))
            elif operation.state is OperationState.FAILED:
                key = self._operations.sealed(operation.operation_id, job)
                operation = await operation_store.revive(connection, operation.operation_id, key)
                await self._operations.enqueue(connection, deployment_id)
        return operation

    async def _renew(self, tenant: TenantId, operation: Operation, job: Bearer) -> None:
        async with self._database.tenant(tenant) as connection:
            key = self._operations.sealed(operation.operation_id, job)
            await operation_store.set_key(connection, operation.operation_id, key)
            await self._operations.enqueue(connection, operation.deployment_id)

    async def _cut_off(
        self, tenant: TenantId, deployment_id: DeploymentId, caller: Bearer
    ) -> Operation:
        """Ends keys and route with the caller's own key, unless the worker was faster."""
        async with self._database.tenant(tenant) as connection:
            deployment = _found(await store.get_deployment(connection, deployment_id))
            operation = await operation_store.of_kind(
                connection, deployment_id, OperationKind.DELETE
            )
        if operation is None:
            raise NotFoundError("operation")
        if _is_cut_off(operation):
            return operation
        work = Work(deployment, operation, caller)
        for step, action in self._deleting.first_steps():
            await self._boundary.reached(OperationKind.DELETE, step, Moment.BEFORE)
            await action(work)
            await self._boundary.reached(OperationKind.DELETE, step, Moment.AFTER)
        async with self._database.tenant(tenant) as connection:
            await operation_store.set_step(connection, operation.operation_id, Step.RELEASING)
        return operation


def _is_cut_off(operation: Operation) -> bool:
    return operation.state is OperationState.SUCCEEDED or operation.step not in _CUTTING_OFF


def _found(deployment: Deployment | None) -> Deployment:
    if deployment is None:
        raise NotFoundError("deployment")
    return deployment
