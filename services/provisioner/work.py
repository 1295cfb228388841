"""What is done with a deployment: an operation, the plan of its kind, the steps of the plan."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from services.provisioner.domain import Deployment, Operation, OperationKind, Step
from services.provisioner.ports import Bearer


@dataclass(frozen=True, slots=True)
class Work:
    """An operation under way, and the key it acts with."""

    deployment: Deployment
    operation: Operation
    bearer: Bearer


Action = Callable[[Work], Awaitable[None]]


class NotYetError(Exception):
    """A step has nothing to do but wait; it is taken again after `delay`, and none has failed."""

    def __init__(self, delay: timedelta) -> None:
        super().__init__("not yet")
        self.delay = delay


class Plan(Protocol):
    """The steps of one kind of operation; each is safe to repeat, from wherever it was left."""

    def steps(self, operation: Operation) -> Sequence[tuple[Step, Action]]:
        """Returns what is still to be done, in order. Who does it holds the deployment's lock."""
        ...

    async def give_up(self, work: Work) -> None:
        """Leaves the world as it should be when the operation has failed for good."""
        ...


class Moment(StrEnum):
    """When, of a step."""

    BEFORE = "before"
    AFTER = "after"


class Boundary(Protocol):
    """Is told of each step's beginning and end, before anything of the next is written down.

    A test kills the process there.
    """

    async def reached(self, kind: OperationKind, step: Step, moment: Moment) -> None:
        """Returns when the work may go on."""
        ...


class Unwatched:
    """Nobody is told."""

    async def reached(self, kind: OperationKind, step: Step, moment: Moment) -> None:
        """Returns at once."""


def rest(plan: Sequence[tuple[Step, Action]], step: Step) -> Sequence[tuple[Step, Action]]:
    """Returns the part of `plan` that begins with `step`."""
    return plan[[name for name, _ in plan].index(step) :]
