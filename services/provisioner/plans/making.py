"""Making a deployment."""

from collections.abc import Sequence

from services.provisioner.domain import (
    DatabaseAddress,
    Deployment,
    Operation,
    ResourceKind,
    RouteState,
    Step,
)
from services.provisioner.drivers.protocol import DatabaseDriver
from services.provisioner.listening import Listening
from services.provisioner.own_buckets import OwnBuckets
from services.provisioner.plans.origins import Origins
from services.provisioner.plans.progress import Progress
from services.provisioner.ports import Registry, Routes
from services.provisioner.waking import Waking
from services.provisioner.work import Action, Work
from services.shared.postgres import Database


class Making:
    """The plan of `OperationKind.CREATE`; it begins anew each time, for what is done is cheap."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        routes: Routes,
        driver: DatabaseDriver,
        waking: Waking,
        listening: Listening,
        buckets: OwnBuckets,
        origins: Origins,
    ) -> None:
        self._registry = registry
        self._routes = routes
        self._driver = driver
        self._waking = waking
        self._listening = listening
        self._buckets = buckets
        self._origins = origins
        self._progress = Progress(database)

    def steps(self, operation: Operation) -> Sequence[tuple[Step, Action]]:  # noqa: ARG002 it begins anew
        """Returns every step; see `work.Plan`."""
        return (
            *self.first_steps(),
            (Step.DATABASE, self._make_database),
            (Step.BUCKET, self._make_bucket),
            (Step.PUBLISHING, self._publish),
        )

    def first_steps(self) -> Sequence[tuple[Step, Action]]:
        """Returns those that the call itself tries to take, so that its answer is of use."""
        return (Step.REGISTERING, self._register), (Step.ROUTE, self._announce)

    async def give_up(self, work: Work) -> None:
        """Leaves nothing of a deployment that cannot be made, but a route that says so."""
        await self._driver.destroy(work.deployment.deployment_id)
        await self._buckets.remove(work.deployment)
        await self._routes.put(work.bearer, work.deployment, RouteState.FAILED)

    async def _register(self, work: Work) -> None:
        """Lets keys be issued for the deployment; what is lent and counted needs no more."""
        await self._registry.register(work.bearer, work.deployment.deployment_id)
        await self._progress.ready(
            work.deployment, ResourceKind.KEYS, ResourceKind.LOANS, ResourceKind.COUNTERS
        )

    async def _announce(self, work: Work) -> None:
        """Lets the host answer that the deployment is being made."""
        await self._routes.put(work.bearer, work.deployment, RouteState.STARTING)

    async def _make_database(self, work: Work) -> None:
        if work.deployment.database:
            await self._origins.fill(work.deployment)
            await self.ensure_database(work.deployment)
            await self._progress.ready(work.deployment, ResourceKind.DATABASE, ResourceKind.BACKUPS)

    async def _make_bucket(self, work: Work) -> None:
        await self._buckets.make(work.deployment)

    async def _publish(self, work: Work) -> None:
        await self._routes.put(work.bearer, work.deployment, RouteState.RUNNING)
        await self._progress.ready(work.deployment, ResourceKind.ROUTE)

    async def ensure_database(self, deployment: Deployment) -> DatabaseAddress:
        """Returns where the deployment's database runs, made if it was not, and listened for.

        Raises:
            DriverError: it does not run.
            UnavailableError: no port could be found, or written down.
        """
        await self._listening.open(deployment)
        return await self._waking.make(deployment)
