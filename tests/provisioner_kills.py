"""A provisioner in processes of their own, and the boundaries at which they die."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import grpc

from services.provisioner.domain import Operation, OperationKind, OperationState, Step
from services.provisioner.plans.backing_up import BackingUp
from services.provisioner.plans.deleting import Deleting
from services.provisioner.plans.making import Making
from services.provisioner.plans.rotating import Rotating
from services.provisioner.plans.suspending import Resuming, Suspending
from services.provisioner.settings import Settings
from services.provisioner.tenant_deleting import TenantDeleting
from services.provisioner.work import Moment, Plan
from services.shared.ids import DeploymentId, OperationId, TenantId
from tests.contracts import ROOT

ARMED: Final = "armed"
DIED: Final = "died"
HELD: Final = "held"
TWICE: Final = "twice"
# For twenty deaths in a row on a machine with much else to do.
PATIENCE_SECONDS: Final = 240.0
PAUSE_SECONDS: Final = 0.1

# The plan of each kind, and the step that it begins with; what is made of nothing has no steps
# but its own.
_PLANS: Final[Mapping[OperationKind, tuple[type[Plan], Step]]] = {
    OperationKind.CREATE: (Making, Step.REGISTERING),
    OperationKind.DELETE: (Deleting, Step.RETIRING),
    OperationKind.SUSPEND: (Suspending, Step.CLOSING),
    OperationKind.RESUME: (Resuming, Step.LENDING),
    OperationKind.ROTATE: (Rotating, Step.ISSUING),
    OperationKind.BACK_UP: (BackingUp, Step.COPYING),
}

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Death:
    """Where a process dies."""

    kind: OperationKind
    step: Step
    moment: Moment

    def __str__(self) -> str:
        return f"{self.kind} {self.step} {self.moment}"


def steps_of(kind: OperationKind) -> Sequence[Step]:
    """Returns every step of the kind, as its plan has them."""
    if kind is OperationKind.DELETE_TENANT:
        tenants = TenantDeleting.__new__(TenantDeleting)
        return [step for step, _ in tenants._rest(Step.CUTTING_OFF)]  # noqa: SLF001 its plan
    plan, first = _PLANS[kind]
    operation = Operation(
        OperationId(""),
        TenantId(""),
        DeploymentId(""),
        kind,
        OperationState.RUNNING,
        first,
        retries=0,
        message="",
        create_time=datetime.now(UTC),
    )
    return [step for step, _ in object.__new__(plan).steps(operation)]


def boundaries_of(kind: OperationKind) -> list[str]:
    """Returns where a process dies that dies at every boundary of the kind, in order."""
    return [str(Death(kind, step, moment)) for step in steps_of(kind) for moment in Moment]


@dataclass(frozen=True, slots=True)
class Kills:
    """What is armed, and who died where."""

    folder: Path

    @contextmanager
    def armed(self, kind: OperationKind) -> Iterator[None]:
        """Lets whoever comes to a boundary of the kind die there, once at each."""
        (self.folder / DIED).write_text("")
        (self.folder / ARMED).write_text(kind)
        try:
            yield
        finally:
            (self.folder / ARMED).write_text("")

    def died(self) -> list[str]:
        """Returns the boundaries at which processes died since it was armed, in that order."""
        return (self.folder / DIED).read_text().splitlines()

    def shared(self) -> list[str]:
        """Returns the steps that were taken while somebody else took one."""
        return (self.folder / TWICE).read_text().splitlines()


def kills_in(folder: Path) -> Kills:
    """Returns an empty record, nothing armed."""
    folder.mkdir()
    for name in (ARMED, DIED, HELD, TWICE):
        (folder / name).touch()
    return Kills(folder)


@asynccontextmanager
async def provisioner(settings: Settings, kills: Kills) -> AsyncIterator[None]:
    """Serves in a process of its own, again after each death, until the context ends."""
    log = kills.folder / "provisioner.log"
    with log.open("ab") as written:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.provisioner_process", str(kills.folder)),
            env=os.environ | _environment(settings),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=written,
            stderr=written,
        )
    try:
        await _accepting(settings)
        yield
    finally:
        process.terminate()
        assert await process.wait() == 0, log.read_text()[-4_000:]


async def _accepting(settings: Settings) -> None:
    """Returns when somebody listens where it is to listen."""
    host, _, port = settings.listen.rpartition(":")
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                writer.close()
                return


def _environment(settings: Settings) -> dict[str, str]:
    values = settings.model_dump(exclude_defaults=True)
    return {f"BULKHEAD_{name.upper()}": str(value) for name, value in values.items()}


async def insisted(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Returns the answer to a call that is made again while nobody is there to answer."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
            await asyncio.sleep(PAUSE_SECONDS)


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it is so, nobody there to answer meanwhile or not."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await insisted(met):
            await asyncio.sleep(PAUSE_SECONDS)
