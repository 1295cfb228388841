"""Suspending a deployment: shut at once, put to sleep by the reconciler; and ending that."""

from services.provisioner import operation_store, store
from services.provisioner.domain import (
    LOCK_PATIENCE,
    Deployment,
    DeploymentState,
    Operation,
    OperationKind,
    OperationState,
    Step,
)
from services.provisioner.operations import Operations, check_idle, operation_running
from services.provisioner.plans.suspending import Suspending
from services.provisioner.ports import Bearer, Locks, Registry
from services.provisioner.work import Boundary, Moment, Work
from services.shared.errors import FailedPreconditionError, NotFoundError, Reason
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection, Database

# Nobody gets in when these are taken.
_SHUT = frozenset({Step.SLEEPING, Step.LOCKING})
_CAN_BE = frozenset({DeploymentState.READY, DeploymentState.SUSPENDED})


class Suspension:
    """Suspends deployments, and resumes them; each ends the other when that is under way."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        operations: Operations,
        registry: Registry,
        suspending: Suspending,
        boundary: Boundary,
    ) -> None:
        self._database = database
        self._locks = locks
        self._operations = operations
        self._registry = registry
        self._suspending = suspending
        self._boundary = boundary

    async def suspend(
        self, tenant: TenantId, caller: Bearer, deployment_id: DeploymentId
    ) -> Operation:
        """Returns the operation; the host answers 402 and nothing is vended by then.

        Suspending twice answers with the first operation, unless that has failed.

        Raises:
            NotFoundError: the tenant has no such deployment.
            FailedPreconditionError: something else is being done with it, or it was never ready.
            UnavailableError: it may not be shut yet; what was written down goes on by itself, and
                asking again is safe.
        """
        operation = await self._begun(tenant, deployment_id)
        if operation is None:
            job = await self._registry.delegate(caller, f"suspend {deployment_id}")
            operation = await self._begin(tenant, deployment_id, job)
        if _is_shut(operation):
            return operation
        async with self._locks.hold(deployment_id, LOCK_PATIENCE, caller=tenant):
            return await self._shut(tenant, caller, operation)

    async def _begun(self, tenant: TenantId, deployment_id: DeploymentId) -> Operation | None:
        async with self._database.tenant(tenant) as connection:
            deployment = _found(await store.get_deployment(connection, deployment_id))
            return await _present_suspension(connection, deployment)

    async def _begin(self, tenant: TenantId, deployment_id: DeploymentId, job: Bearer) -> Operation:
        """Writes state, operation and queue entry at once."""
        async with self._database.tenant(tenant) as connection:
            deployment = _found(await store.get_deployment(connection, deployment_id, lock=True))
            earlier = await _present_suspension(connection, deployment)
            if earlier is not None:
                return earlier
            await _supersede(connection, deployment_id, OperationKind.RESUME)
            await check_idle(connection, deployment_id)
            _check_can_be(deployment)
            await store.set_state(connection, deployment_id, DeploymentState.SUSPENDED)
            return await self._operations.begin(
                connection, deployment, OperationKind.SUSPEND, Step.CLOSING, job
            )

    async def _shut(self, tenant: TenantId, caller: Bearer, operation: Operation) -> Operation:
        """Takes the first steps with the caller's own key, unless the worker was faster."""
        async with self._database.tenant(tenant) as connection:
            deployment = _found(await store.get_deployment(connection, operation.deployment_id))
            current = await operation_store.get(connection, operation.operation_id)
        if current is None:
            raise NotFoundError("operation")
        if current.done or _is_shut(current):
            # The worker was faster; or another call has ended it, which has the last word.
            return current
        work = Work(deployment, current, caller)
        for step, action in self._suspending.first_steps():
            await self._boundary.reached(OperationKind.SUSPEND, step, Moment.BEFORE)
            await action(work)
            await self._boundary.reached(OperationKind.SUSPEND, step, Moment.AFTER)
        async with self._database.tenant(tenant) as connection:
            await operation_store.set_step(connection, operation.operation_id, Step.SLEEPING)
        return current

    async def resume(
        self, tenant: TenantId, caller: Bearer, deployment_id: DeploymentId
    ) -> Operation:
        """Returns the operation that ends the suspension, or that ended the last one.

        Raises:
            NotFoundError: the tenant has no such deployment.
            FailedPreconditionError: it was never suspended, or something else is being done.
        """
        async with self._database.tenant(tenant) as connection:
            deployment = _found(await store.get_deployment(connection, deployment_id))
            earlier = await _present_resumption(connection, deployment)
        if earlier is not None:
            return earlier
        job = await self._registry.delegate(caller, f"resume {deployment_id}")
        async with self._database.tenant(tenant) as connection:
            deployment = _found(await store.get_deployment(connection, deployment_id, lock=True))
            earlier = await _present_resumption(connection, deployment)
            if earlier is not None:
                return earlier
            await _supersede(connection, deployment_id, OperationKind.SUSPEND)
            await check_idle(connection, deployment_id)
            return await self._operations.begin(
                connection, deployment, OperationKind.RESUME, Step.LENDING, job
            )


async def _present_suspension(connection: Connection, deployment: Deployment) -> Operation | None:
    """Returns the operation that suspends the deployment, or did; None if another is to.

    Raises:
        FailedPreconditionError: something else is being done with it.
    """
    running = await operation_store.running(connection, deployment.deployment_id)
    if running is not None and running.kind is OperationKind.SUSPEND:
        return running
    if running is not None and running.kind is not OperationKind.RESUME:
        raise operation_running(running)
    if running is not None or deployment.state is not DeploymentState.SUSPENDED:
        return None
    last = await operation_store.of_kind(
        connection, deployment.deployment_id, OperationKind.SUSPEND
    )
    return last if last is not None and last.state is OperationState.SUCCEEDED else None


async def _present_resumption(connection: Connection, deployment: Deployment) -> Operation | None:
    """Returns the operation that resumes the deployment, or did; None if another is to.

    Raises:
        FailedPreconditionError: the deployment was never suspended.
    """
    last = await operation_store.of_kind(connection, deployment.deployment_id, OperationKind.RESUME)
    if deployment.state is DeploymentState.SUSPENDED:
        return last if last is not None and not last.done else None
    if last is None:
        raise FailedPreconditionError("the deployment is not suspended", Reason.NOT_SUSPENDED)
    return last


async def _supersede(
    connection: Connection, deployment_id: DeploymentId, kind: OperationKind
) -> None:
    message = "the deployment was suspended or resumed anew before it was done"
    await operation_store.supersede(connection, deployment_id, (kind,), message)


def _is_shut(operation: Operation) -> bool:
    return operation.state is OperationState.SUCCEEDED or operation.step in _SHUT


def _found(deployment: Deployment | None) -> Deployment:
    if deployment is None or deployment.state is DeploymentState.DELETED:
        raise NotFoundError("deployment")
    return deployment


def _check_can_be(deployment: Deployment) -> None:
    if deployment.state not in _CAN_BE:
        raise FailedPreconditionError("the deployment is not ready", Reason.OPERATION_FAILED)
