"""Deleting a deployment."""

from collections.abc import Sequence

from services.provisioner.domain import Operation, Step
from services.provisioner.drivers.protocol import DatabaseDriver
from services.provisioner.ports import Loans, Registry, Routes
from services.provisioner.work import Action, Work, rest


class Deleting:
    """The plan of `OperationKind.DELETE`.

    It goes on where it was, for its key may not outlive what is done already.
    """

    def __init__(
        self, registry: Registry, routes: Routes, loans: Loans, driver: DatabaseDriver
    ) -> None:
        self._registry = registry
        self._routes = routes
        self._loans = loans
        self._driver = driver

    def steps(self, operation: Operation) -> Sequence[tuple[Step, Action]]:
        """Returns what is still to be done; see `work.Plan`."""
        plan: Sequence[tuple[Step, Action]] = (
            *self.first_steps(),
            (Step.RELEASING, self._release),
            (Step.DESTROYING, self._destroy),
        )
        return rest(plan, operation.step)

    def first_steps(self) -> Sequence[tuple[Step, Action]]:
        """Returns those that are taken before the call returns: nobody gets in any more."""
        return (Step.RETIRING, self._retire), (Step.UNROUTING, self._unroute)

    async def give_up(self, work: Work) -> None:
        """Does nothing: what is to be deleted stays so, and asking again begins anew."""

    async def _retire(self, work: Work) -> None:
        """Ends every key of the deployment."""
        await self._registry.retire(work.bearer, work.deployment.deployment_id)

    async def _unroute(self, work: Work) -> None:
        """Makes the host unknown."""
        await self._routes.delete(work.bearer, work.deployment.deployment_id)

    async def _release(self, work: Work) -> None:
        """Ends what was lent to the deployment.

        Its keys are dead by then, so that nothing is vended along a binding, and whoever
        credentials keeps waiting is cut off all the same.
        """
        await self._loans.end(work.bearer, work.deployment.deployment_id)

    async def _destroy(self, work: Work) -> None:
        """Removes process and data."""
        await self._driver.destroy(work.deployment.deployment_id)
