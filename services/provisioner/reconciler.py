"""Makes the world match the rows, one deployment at a time."""

import random
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

import structlog
from opentelemetry import propagate, trace

from services.provisioner import operation_store, store
from services.provisioner.domain import (
    DeploymentState,
    Operation,
    OperationKind,
    OperationState,
    Step,
    retry_delay,
)
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.master_secret import MasterSecret, MasterSecretError
from services.provisioner.ports import Bearer, Locks
from services.provisioner.work import Action, Boundary, Moment, NotYetError, Plan, Work
from services.shared.errors import (
    BulkheadError,
    DeadlineTooShortError,
    LimitExceededError,
    UnavailableError,
)
from services.shared.ids import DeploymentId
from services.shared.postgres import Database

# Whoever holds the lock for longer is at it; what is left is looked at again after.
_LOCK_PATIENCE = timedelta(seconds=2)
_PASSING = (UnavailableError, DeadlineTooShortError, LimitExceededError, DriverError)


# What the deployment's state becomes at an operation's end, and from which. A delete that failed is
# still wanted: asking again begins it anew.
_CHANGES: Mapping[tuple[OperationKind, OperationState], tuple[DeploymentState, DeploymentState]] = (
    MappingProxyType(
        {
            (OperationKind.CREATE, OperationState.SUCCEEDED): (
                DeploymentState.CREATING,
                DeploymentState.READY,
            ),
            (OperationKind.CREATE, OperationState.FAILED): (
                DeploymentState.CREATING,
                DeploymentState.FAILED,
            ),
            (OperationKind.DELETE, OperationState.SUCCEEDED): (
                DeploymentState.DELETING,
                DeploymentState.DELETED,
            ),
            (OperationKind.RESUME, OperationState.SUCCEEDED): (
                DeploymentState.SUSPENDED,
                DeploymentState.READY,
            ),
        }
    )
)


class _SupersededError(Exception):
    """The operation has been ended by a later one."""


class Reconciler:
    """Does what operations say, until they are done or given up."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        plans: Mapping[OperationKind, Plan],
        secret: MasterSecret,
        boundary: Boundary,
        *,
        create_tries: int,
    ) -> None:
        self._database = database
        self._locks = locks
        self._plans = plans
        self._secret = secret
        self._boundary = boundary
        self._create_tries = create_tries

    async def reconcile(
        self, deployment: DeploymentId, carrier: Mapping[str, str]
    ) -> timedelta | None:
        """Does what is to be done for the deployment now, as part of the trace in `carrier`.

        Returns how long to wait before looking again; None when nothing is left to do.
        """
        with trace.get_tracer("bulkhead").start_as_current_span(
            "reconcile",
            context=propagate.extract(carrier),
            attributes={"bulkhead.deployment_id": deployment},
        ):
            try:
                async with self._locks.hold(deployment, _LOCK_PATIENCE):
                    return await self._look(deployment)
            except UnavailableError:
                # The lock is held, or our own database is away: nothing could be written down.
                return timedelta(seconds=random.uniform(0.1, 0.5))  # noqa: S311 no secret

    async def _look(self, deployment_id: DeploymentId) -> timedelta | None:
        async with self._database.service() as connection:
            found = await operation_store.running_of(connection, deployment_id)
            deployment = await store.get_deployment(connection, deployment_id)
        if found is None or deployment is None:
            return None
        operation, sealed, wait = found
        if wait:
            return wait
        try:
            key = self._secret.open(sealed, bound_to=operation.operation_id)
        except MasterSecretError:
            await self._end(operation, OperationState.FAILED, "the operation's key is lost")
            return None
        return await self._do(Work(deployment, operation, Bearer(key)))

    async def _do(self, work: Work) -> timedelta | None:
        try:
            for step, action in self._plans[work.operation.kind].steps(work.operation):
                await self._take(work, step, action)
            await self._end(work.operation, OperationState.SUCCEEDED, "")
        except _SupersededError:
            return timedelta(0)
        except NotYetError as wait:
            return await self._postpone(work.operation, wait.delay)
        except Exception as error:  # noqa: BLE001 whatever it is, the operation goes on or fails
            return await self._failed(work, error)
        return None

    async def _take(self, work: Work, step: Step, action: Action) -> None:
        kind = work.operation.kind
        await self._enter(work.operation, step)
        await self._boundary.reached(kind, step, Moment.BEFORE)
        await action(work)
        await self._boundary.reached(kind, step, Moment.AFTER)

    async def _postpone(self, operation: Operation, delay: timedelta) -> timedelta:
        async with self._database.tenant(operation.tenant_id) as connection:
            await operation_store.set_next_try(connection, operation.operation_id, delay)
        return delay

    async def _enter(self, operation: Operation, step: Step) -> None:
        """Writes down what is done now, unless the operation has been ended meanwhile."""
        async with self._database.tenant(operation.tenant_id) as connection:
            current = await operation_store.get(connection, operation.operation_id)
            if current is None or current.done:
                raise _SupersededError
            if current.step is not step:
                await operation_store.set_step(connection, operation.operation_id, step)

    async def _end(self, operation: Operation, state: OperationState, message: str) -> None:
        async with self._database.tenant(operation.tenant_id) as connection:
            current = await store.get_deployment(connection, operation.deployment_id, lock=True)
            await operation_store.end(connection, operation.operation_id, state, message)
            # A delete that came in between has the last word on the deployment.
            change = _CHANGES.get((operation.kind, state))
            if change is not None and current is not None and current.state is change[0]:
                await store.set_state(connection, operation.deployment_id, change[1])

    async def _failed(self, work: Work, error: Exception) -> timedelta | None:
        operation = work.operation
        _log(operation, error)
        message = _message(error)
        creates = operation.kind is OperationKind.CREATE
        exhausted = creates and operation.retries + 1 >= self._create_tries
        if exhausted or (isinstance(error, BulkheadError) and not isinstance(error, _PASSING)):
            await self._give_up(work, message)
            return None
        delay = retry_delay(operation.retries, random.random())  # noqa: S311 no secret
        async with self._database.tenant(operation.tenant_id) as connection:
            await operation_store.set_retry(connection, operation.operation_id, message, delay)
        return delay

    async def _give_up(self, work: Work, message: str) -> None:
        try:
            await self._plans[work.operation.kind].give_up(work)
        except (BulkheadError, DriverError) as error:
            # What is left on disk the sweep removes.
            _log(work.operation, error)
        await self._end(work.operation, OperationState.FAILED, message)


def _message(error: Exception) -> str:
    """Returns what a caller may read about `error`."""
    if isinstance(error, BulkheadError):
        return error.message
    return str(error) if isinstance(error, DriverError) else "internal error"


def _log(operation: Operation, error: Exception) -> None:
    cause = error.__cause__
    structlog.get_logger().warning(
        "step failed",
        operation_id=operation.operation_id,
        step=operation.step,
        retries=operation.retries,
        error=type(error).__name__,
        cause=type(cause).__name__ if cause is not None else None,
    )
