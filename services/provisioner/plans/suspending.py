"""Suspending a deployment, and ending that."""

from collections.abc import Sequence

from services.provisioner import operation_store, resource_store, store
from services.provisioner.domain import (
    Deployment,
    DeploymentState,
    Operation,
    ResourceKind,
    ResourceState,
    RouteState,
    Step,
)
from services.provisioner.drivers.protocol import DatabaseDriver
from services.provisioner.own_buckets import OwnBuckets
from services.provisioner.plans.progress import Progress
from services.provisioner.ports import Loans, Routes
from services.provisioner.work import Action, SupersededError, Work, rest
from services.shared.postgres import Database


class Suspending:
    """The plan of `OperationKind.SUSPEND`: nobody gets in, nothing gets out, nothing is lost."""

    def __init__(
        self,
        database: Database,
        routes: Routes,
        loans: Loans,
        driver: DatabaseDriver,
        buckets: OwnBuckets,
    ) -> None:
        self._routes = routes
        self._loans = loans
        self._driver = driver
        self._buckets = buckets
        self._progress = Progress(database)

    def steps(self, operation: Operation) -> Sequence[tuple[Step, Action]]:
        """Returns what is still to be done; see `work.Plan`."""
        plan: Sequence[tuple[Step, Action]] = (
            *self.first_steps(),
            (Step.SLEEPING, self._sleep),
            (Step.LOCKING, self._lock),
        )
        return rest(plan, operation.step)

    def first_steps(self) -> Sequence[tuple[Step, Action]]:
        """Returns those that are taken before the call returns."""
        return (Step.CLOSING, self._close), (Step.WITHDRAWING, self._withdraw)

    async def give_up(self, work: Work) -> None:
        """Does nothing: it stays suspended as far as it is, and asking again begins anew."""

    async def _close(self, work: Work) -> None:
        """Lets the host answer that the deployment is suspended."""
        await self._routes.put(work.bearer, work.deployment, RouteState.SUSPENDED)
        await self._suspended(work.deployment, ResourceKind.ROUTE)

    async def _withdraw(self, work: Work) -> None:
        """Lets nothing be vended."""
        await self._loans.suspend(work.bearer, work.deployment.deployment_id)
        await self._suspended(work.deployment, ResourceKind.LOANS)

    async def _sleep(self, work: Work) -> None:
        """Ends the database's server; nobody starts it while the deployment is suspended."""
        if work.deployment.database:
            await self._driver.sleep(work.deployment.deployment_id)
            await self._suspended(work.deployment, ResourceKind.DATABASE)

    async def _lock(self, work: Work) -> None:
        """Closes the bucket to credentials that were given out before."""
        await self._buckets.close(work.deployment)

    async def _suspended(self, deployment: Deployment, kind: ResourceKind) -> None:
        await self._progress.put(deployment, ResourceState.SUSPENDED, kind)


class Resuming:
    """The plan of `OperationKind.RESUME`: all is as it was; the database wakes when it is used."""

    def __init__(
        self, database: Database, routes: Routes, loans: Loans, buckets: OwnBuckets
    ) -> None:
        self._database = database
        self._routes = routes
        self._loans = loans
        self._buckets = buckets
        self._progress = Progress(database)

    def steps(self, operation: Operation) -> Sequence[tuple[Step, Action]]:
        """Returns what is still to be done; see `work.Plan`."""
        plan: Sequence[tuple[Step, Action]] = (
            (Step.LENDING, self._lend),
            (Step.UNLOCKING, self._unlock),
            (Step.OPENING, self._open),
        )
        return rest(plan, operation.step)

    async def give_up(self, work: Work) -> None:
        """Does nothing: asking again begins anew."""

    async def _lend(self, work: Work) -> None:
        """Lets be vended again."""
        await self._loans.resume(work.bearer, work.deployment.deployment_id)
        await self._progress.ready(work.deployment, ResourceKind.LOANS)

    async def _unlock(self, work: Work) -> None:
        """Lets the credentials open the bucket again."""
        await self._buckets.open(work.deployment)

    async def _open(self, work: Work) -> None:
        """Lets the host serve again, and the database be woken before it does."""
        await self._end_suspension(work)
        await self._routes.put(work.bearer, work.deployment, RouteState.RUNNING)
        await self._progress.ready(work.deployment, ResourceKind.ROUTE)

    async def _end_suspension(self, work: Work) -> None:
        """Writes that the deployment is ready, unless it was suspended again since, or deleted."""
        deployment_id = work.deployment.deployment_id
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await store.get_deployment(connection, deployment_id, lock=True)
            current = await operation_store.get(connection, work.operation.operation_id)
            if current is None or current.done:
                raise SupersededError
            await store.set_state(connection, deployment_id, DeploymentState.READY)
            await resource_store.set_state(
                connection, deployment_id, ResourceKind.DATABASE, _rested(work.deployment)
            )


def _rested(deployment: Deployment) -> ResourceState:
    """Returns how the database is to be: asleep, or running if it always has to."""
    return ResourceState.SLEEPING if deployment.idle_timeout else ResourceState.READY
