"""What is done with a deployment: an operation, the plan of its kind, the steps of the plan."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Protocol

from services.provisioner.domain import (
    Deployment,
    Operation,
    OperationKind,
    ResourceKind,
    Step,
)
from services.provisioner.ports import Bearer


@dataclass(frozen=True, slots=True)
class Work:
    """An operation under way, and the key it acts with."""

    deployment: Deployment
    operation: Operation
    bearer: Bearer


# What is not as it should be while a step fails.
RESOURCE_OF_STEP: Final[Mapping[Step, ResourceKind]] = MappingProxyType(
    {
        Step.REGISTERING: ResourceKind.KEYS,
        Step.RETIRING: ResourceKind.KEYS,
        Step.ROUTE: ResourceKind.ROUTE,
        Step.PUBLISHING: ResourceKind.ROUTE,
        Step.UNROUTING: ResourceKind.ROUTE,
        Step.CLOSING: ResourceKind.ROUTE,
        Step.OPENING: ResourceKind.ROUTE,
        Step.TELLING: ResourceKind.ROUTE,
        Step.RELEASING: ResourceKind.LOANS,
        Step.WITHDRAWING: ResourceKind.LOANS,
        Step.LENDING: ResourceKind.LOANS,
        Step.UNCOUNTING: ResourceKind.COUNTERS,
        Step.DATABASE: ResourceKind.DATABASE,
        Step.DESTROYING: ResourceKind.DATABASE,
        Step.SLEEPING: ResourceKind.DATABASE,
        Step.BUCKET: ResourceKind.BUCKET,
        Step.LOCKING: ResourceKind.BUCKET,
        Step.UNLOCKING: ResourceKind.BUCKET,
        Step.EMPTYING: ResourceKind.BUCKET,
        Step.SHREDDING: ResourceKind.SECRETS,
        Step.DISCARDING: ResourceKind.BACKUPS,
    }
)
# When to look again at what only a later release knows how to take further.
LEFT_TO_OTHERS: Final = timedelta(seconds=2)
_SWITCHED = frozenset({Step.TELLING, Step.OVERLAPPING, Step.ENDING})
_NEVER_GIVEN_UP = frozenset({OperationKind.DELETE, OperationKind.SUSPEND})
_LIMITED = frozenset({OperationKind.CREATE, OperationKind.BACK_UP})

Action = Callable[[Work], Awaitable[None]]


class NotYetError(Exception):
    """A step has nothing to do but wait; it is taken again after `delay`, and none has failed."""

    def __init__(self, delay: timedelta) -> None:
        super().__init__("not yet")
        self.delay = delay


class SupersededError(Exception):
    """The operation has been ended by a later one."""


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


def must_end_well(kind: OperationKind, step: Step) -> bool:
    """Returns whether nothing but success, or what supersedes it, ends the operation at `step`.

    A deletion is never given up, nor is a suspension: it would look suspended and be open. Nor is a
    rotation whose new passwords are in use: the ones before would open the database for ever.
    """
    if kind is OperationKind.ROTATE:
        return step in _SWITCHED
    return kind in _NEVER_GIVEN_UP


def is_limited(kind: OperationKind, step: Step) -> bool:
    """Returns whether the operation fails when `step` has been tried often enough.

    One that goes on for ever would keep all others from the deployment.
    """
    if kind is OperationKind.ROTATE:
        return step not in _SWITCHED
    return kind in _LIMITED


def rest(plan: Sequence[tuple[Step, Action]], step: Step) -> Sequence[tuple[Step, Action]]:
    """Returns the part of `plan` that begins with `step`."""
    return plan[[name for name, _ in plan].index(step) :]
