"""The steps of making and unmaking a deployment; each is safe to repeat."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from services.provisioner import store
from services.provisioner.domain import (
    DatabaseAddress,
    Deployment,
    Operation,
    OperationKind,
    RouteState,
    Step,
)
from services.provisioner.drivers.protocol import DatabaseDriver
from services.provisioner.ports import Bearer, Loans, Registry, Routes
from services.shared.postgres import Database


@dataclass(frozen=True, slots=True)
class Work:
    """An operation under way, and the key it acts with."""

    deployment: Deployment
    operation: Operation
    bearer: Bearer


Action = Callable[[Work], Awaitable[None]]


class Steps:
    """What each step does. Whoever takes one holds the deployment's lock."""

    def __init__(
        self,
        database: Database,
        registry: Registry,
        routes: Routes,
        loans: Loans,
        driver: DatabaseDriver,
    ) -> None:
        self._database = database
        self._registry = registry
        self._routes = routes
        self._loans = loans
        self._driver = driver

    def of(self, operation: Operation) -> Sequence[tuple[Step, Action]]:
        """Returns what is still to be done, in order.

        A create begins anew each time, for its steps are cheap when they were done; a delete goes
        on where it was, for its key may not outlive what is done already.
        """
        if operation.kind is OperationKind.CREATE:
            return (
                (Step.REGISTERING, self.register),
                (Step.ROUTE, self.announce),
                (Step.DATABASE, self._make_database),
                (Step.PUBLISHING, self._publish),
            )
        steps: Sequence[tuple[Step, Action]] = (
            (Step.RETIRING, self.retire),
            (Step.UNROUTING, self.unroute),
            (Step.RELEASING, self._release),
            (Step.DESTROYING, self.destroy),
        )
        names = [step for step, _ in steps]
        return steps[names.index(operation.step) :]

    async def register(self, work: Work) -> None:
        """Lets keys be issued for the deployment."""
        await self._registry.register(work.bearer, work.deployment.deployment_id)

    async def announce(self, work: Work) -> None:
        """Lets the host answer that the deployment is being made."""
        await self._routes.put(work.bearer, work.deployment, RouteState.STARTING)

    async def _make_database(self, work: Work) -> None:
        if work.deployment.database:
            await self.ensure_database(work.deployment)

    async def _publish(self, work: Work) -> None:
        await self._routes.put(work.bearer, work.deployment, RouteState.RUNNING)

    async def retire(self, work: Work) -> None:
        """Ends every key of the deployment."""
        await self._registry.retire(work.bearer, work.deployment.deployment_id)

    async def unroute(self, work: Work) -> None:
        """Makes the host unknown."""
        await self._routes.delete(work.bearer, work.deployment.deployment_id)

    async def _release(self, work: Work) -> None:
        """Ends what was lent to the deployment.

        Last but one: its keys are dead by then, so that nothing is vended along a binding, and
        whoever credentials keeps waiting is cut off all the same.
        """
        await self._loans.end(work.bearer, work.deployment.deployment_id)

    async def destroy(self, work: Work) -> None:
        """Removes process and data."""
        await self._driver.destroy(work.deployment.deployment_id)

    async def give_up(self, work: Work) -> None:
        """Leaves nothing of a deployment that cannot be made, but a route that says so."""
        await self.destroy(work)
        await self._routes.put(work.bearer, work.deployment, RouteState.FAILED)

    async def ensure_database(self, deployment: Deployment) -> DatabaseAddress:
        """Returns where the deployment's database runs.

        Raises:
            DriverError: it does not run.
        """
        address = await self._driver.ensure(
            deployment.deployment_id, deployment.generation, deployment.database_port
        )
        if address.port != deployment.database_port:
            async with self._database.tenant(deployment.tenant_id) as connection:
                await store.set_database_port(connection, deployment.deployment_id, address.port)
        return address
