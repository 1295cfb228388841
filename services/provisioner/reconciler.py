"""Makes the world match the rows, one deployment at a time."""

import random
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

import structlog
from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from services.provisioner import operation_store, resource_store, store
from services.provisioner.domain import (
    DeploymentState,
    Operation,
    OperationKind,
    OperationState,
    ResourceState,
    Step,
    retry_delay,
)
from services.provisioner.drivers.protocol import DriverError
from services.provisioner.figures import WorkFigures
from services.provisioner.master_secret import MasterSecret, MasterSecretError
from services.provisioner.operation_store import Due, SealedKey
from services.provisioner.ports import Bearer, Locks, Registry
from services.provisioner.work import (
    LEFT_TO_OTHERS,
    RESOURCE_OF_STEP,
    Action,
    Boundary,
    Moment,
    NotYetError,
    Plan,
    SupersededError,
    Work,
    is_limited,
    must_end_well,
)
from services.shared.errors import (
    BulkheadError,
    DeadlineTooShortError,
    LimitExceededError,
    UnavailableError,
)
from services.shared.ids import DeploymentId
from services.shared.postgres import Connection, Database
from services.shared.recording import SCOPE, fail, incoming

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
        }
    )
)


class Reconciler:
    """Does what operations say, until they are done or given up."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        registry: Registry,
        plans: Mapping[OperationKind, Plan],
        secret: MasterSecret,
        boundary: Boundary,
        *,
        create_tries: int,
    ) -> None:
        self._database = database
        self._locks = locks
        self._registry = registry
        self._plans = plans
        self._secret = secret
        self._boundary = boundary
        self._create_tries = create_tries
        self._figures = WorkFigures(metrics.get_meter(SCOPE))

    async def reconcile(
        self, deployment: DeploymentId, carrier: Mapping[str, str]
    ) -> timedelta | None:
        """Does what is to be done for the deployment now, as part of the trace in `carrier`.

        Returns how long to wait before looking again; None when nothing is left to do.
        """
        with trace.get_tracer(SCOPE).start_as_current_span(
            "reconcile",
            context=incoming(carrier) or Context(),
            kind=SpanKind.CONSUMER,
            attributes={"bulkhead.deployment_id": deployment},
            record_exception=False,
            set_status_on_exception=False,
        ):
            try:
                async with self._locks.hold(deployment, _LOCK_PATIENCE):
                    return await self._look(deployment)
            except UnavailableError:
                # The lock is held, or our own database is away: nothing could be written down.
                return timedelta(seconds=random.uniform(0.1, 0.5))  # noqa: S311 no secret

    async def _look(self, deployment_id: DeploymentId) -> timedelta | None:
        async with self._database.service() as connection:
            due = await operation_store.due(connection, deployment_id)
            deployment = await store.get_deployment(connection, deployment_id)
        if due is None or deployment is None:
            return None
        if due.wait or not due.operation.step.is_known:
            return due.wait or LEFT_TO_OTHERS
        try:
            bearer = await self._bearer(due)
        except MasterSecretError:
            await self._end(due.operation, OperationState.FAILED, "the operation's key is lost")
        else:
            wait = await self._do(Work(deployment, due.operation, bearer))
            if wait is not None:
                return wait
        return await self._next(deployment_id)

    async def _next(self, deployment_id: DeploymentId) -> timedelta | None:
        """Returns how long to wait for what else there is to be done."""
        async with self._database.service() as connection:
            due = await operation_store.due(connection, deployment_id)
        return None if due is None else due.wait

    async def _bearer(self, due: Due) -> Bearer:
        """Returns the key to act with, a new one well before the present one ends."""
        operation = due.operation
        bearer = Bearer(self._secret.open(due.sealed_key, bound_to=operation.operation_id))
        if not due.stale:
            return bearer
        try:
            job = await self._registry.delegate(
                bearer, f"{operation.kind} {operation.deployment_id}"
            )
        except BulkheadError as error:
            # What is still to be done may not need it, and the next look asks again.
            _log(operation, operation.step, error)
            return bearer
        sealed = self._secret.seal(job.key, bound_to=operation.operation_id)
        async with self._database.service() as connection:
            key = SealedKey(sealed, job.renew_time)
            await operation_store.set_key(connection, operation.operation_id, key)
        return job

    async def _do(self, work: Work) -> timedelta | None:
        step = work.operation.step
        try:
            for step, action in self._plans[work.operation.kind].steps(work.operation):
                await self._take(work, step, action)
            await self._end(work.operation, OperationState.SUCCEEDED, "")
        except SupersededError:
            return timedelta(0)
        except NotYetError as wait:
            return await self._postpone(work.operation, wait.delay)
        except Exception as error:  # noqa: BLE001 whatever it is, the operation goes on or fails
            return await self._failed(work, step, error)
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
                raise SupersededError
            if current.step is not step:
                await operation_store.set_step(connection, operation.operation_id, step)

    async def _end(self, operation: Operation, state: OperationState, message: str) -> None:
        async with self._database.tenant(operation.tenant_id) as connection:
            current = await store.get_deployment(connection, operation.deployment_id, lock=True)
            ended = await operation_store.end(connection, operation.operation_id, state, message)
            # Whatever came in between has the last word on the deployment.
            change = _CHANGES.get((operation.kind, state)) if ended else None
            if change is not None and current is not None and current.state is change[0]:
                await store.set_state(connection, operation.deployment_id, change[1])
        if ended:
            self._figures.ended(operation, state)

    async def _failed(self, work: Work, step: Step, error: Exception) -> timedelta | None:
        operation = work.operation
        _log(operation, step, error)
        self._figures.failed(operation.kind, step)
        fail(trace.get_current_span(), _reason(error))
        message = _message(error)
        if self._is_hopeless(operation, step, error):
            await self._give_up(work, step, message)
            return None
        delay = retry_delay(operation.retries, random.random())  # noqa: S311 no secret
        async with self._database.tenant(operation.tenant_id) as connection:
            await operation_store.set_retry(connection, operation.operation_id, message, delay)
            await _show(connection, operation, step, message)
        return delay

    def _is_hopeless(self, operation: Operation, step: Step, error: Exception) -> bool:
        if must_end_well(operation.kind, step):
            return False
        if isinstance(error, BulkheadError) and not isinstance(error, _PASSING):
            return True
        return is_limited(operation.kind, step) and operation.retries + 1 >= self._create_tries

    async def _give_up(self, work: Work, step: Step, message: str) -> None:
        try:
            await self._plans[work.operation.kind].give_up(work)
        except (BulkheadError, DriverError) as error:
            # What is left on disk the sweep removes.
            _log(work.operation, step, error)
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await _show(connection, work.operation, step, message)
        await self._end(work.operation, OperationState.FAILED, message)


async def _show(connection: Connection, operation: Operation, step: Step, message: str) -> None:
    """Writes that the step's resource is not as it should be, and why."""
    kind = RESOURCE_OF_STEP.get(step)
    if kind is not None:
        going = operation.kind is OperationKind.DELETE
        state = ResourceState.GOING if going else ResourceState.DEGRADED
        await resource_store.set_state(connection, operation.deployment_id, kind, state, message)


def _message(error: Exception) -> str:
    """Returns what a caller may read about `error`."""
    if isinstance(error, BulkheadError):
        return error.message
    return str(error) if isinstance(error, DriverError) else "internal error"


def _reason(error: Exception) -> str:
    return error.reason.value if isinstance(error, BulkheadError) else type(error).__name__


def _log(operation: Operation, step: Step, error: Exception) -> None:
    cause = error.__cause__
    structlog.get_logger().warning(
        "step failed",
        operation_id=operation.operation_id,
        step=step,
        retries=operation.retries,
        error=type(error).__name__,
        cause=type(cause).__name__ if cause is not None else None,
    )
