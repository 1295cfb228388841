"""Giving a database's roles new passwords."""

from collections.abc import Sequence
from datetime import timedelta

from services.provisioner import operation_store, store
from services.provisioner.domain import Operation, RouteState, Step
from services.provisioner.drivers.protocol import DatabaseDriver
from services.provisioner.ports import Routes
from services.provisioner.work import Action, NotYetError, SupersededError, Work, rest
from services.shared.postgres import Database

# What the operation is to do.
GENERATION, OVERLAP_SECONDS = "generation", "overlap_seconds"
_NOT_SWITCHED = frozenset({Step.ISSUING, Step.SWITCHING})


class Rotating:
    """The plan of `OperationKind.ROTATE`.

    At every moment the passwords that the row names open the database, so that whoever asks for
    them gets in. A database that sleeps is not woken: the row says what opens it when it wakes.
    """

    def __init__(self, database: Database, routes: Routes, driver: DatabaseDriver) -> None:
        self._database = database
        self._routes = routes
        self._driver = driver

    def steps(self, operation: Operation) -> Sequence[tuple[Step, Action]]:
        """Returns what is still to be done; see `work.Plan`.

        Until it is sure that the row was changed, the database is asked anew: it may have slept
        and woken since, with what the row said.
        """
        plan: Sequence[tuple[Step, Action]] = (
            (Step.ISSUING, self._issue),
            (Step.SWITCHING, self._switch),
            (Step.TELLING, self._tell),
            (Step.OVERLAPPING, self._overlap),
            (Step.ENDING, self._end),
        )
        return plan if operation.step in _NOT_SWITCHED else rest(plan, operation.step)

    async def give_up(self, work: Work) -> None:
        """Lets the new passwords open nothing, if they are not in use."""
        if work.deployment.generation < _generation(work):
            await self._driver.close_generation(work.deployment.deployment_id, _generation(work))

    async def _issue(self, work: Work) -> None:
        """Lets the new passwords open the database, beside the present ones."""
        await self._driver.open_generation(work.deployment.deployment_id, _generation(work))

    async def _switch(self, work: Work) -> None:
        """Gives the new ones to whoever asks from now on."""
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await store.set_generation(connection, work.deployment.deployment_id, _generation(work))

    async def _tell(self, work: Work) -> None:
        """Lets the front door replace its connections by new ones."""
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            deployment = await store.get_deployment(connection, work.deployment.deployment_id)
        if deployment is None:
            raise SupersededError
        await self._routes.put(work.bearer, deployment, RouteState.RUNNING)

    async def _overlap(self, work: Work) -> None:
        """Waits until the ones before have been valid for long enough, by Postgres's clock.

        What else is to be done with the deployment meanwhile does not wait for it.
        """
        overlap = timedelta(seconds=work.operation.parameters[OVERLAP_SECONDS])
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            left = await operation_store.begin_overlap(
                connection, work.operation.operation_id, overlap
            )
        if left:
            raise NotYetError(left)

    async def _end(self, work: Work) -> None:
        """Ends the passwords of before: first where a start would read it, then where it runs."""
        before = _generation(work) - 1
        async with self._database.tenant(work.deployment.tenant_id) as connection:
            await store.set_closed_generation(connection, work.deployment.deployment_id, before)
        await self._driver.close_generation(work.deployment.deployment_id, before)


def _generation(work: Work) -> int:
    return int(work.operation.parameters[GENERATION])
