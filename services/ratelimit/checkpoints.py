"""The durable month (P-05): what is used is written down every second, and outlives Valkey."""

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

import structlog
from opentelemetry import metrics

from services.ratelimit.ledger import (
    Counted,
    Ledger,
    LocalUse,
    MonthUnknownError,
    OwnUse,
    Replayed,
    Start,
)
from services.ratelimit.months import month_at, months_before
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId

MONTHS_KEPT: Final = 13
# What is saved and was not used for so long is forgotten here: Postgres has it.
RETAINED_US: Final = 10 * 60 * 1_000_000


class DurablyKnown(Protocol):
    """What Postgres says of a month."""

    @property
    def counted(self) -> int:
        """Calls that were counted in Valkey."""
        ...

    @property
    def to_replay(self) -> int:
        """Calls that still have to be."""
        ...


class Durable(Protocol):
    """The durable counts."""

    async def save(
        self, counts: Sequence[Counted], uses: Sequence[LocalUse], done: Sequence[Replayed] = ()
    ) -> None:
        """Writes counts, local use and what of it is in Valkey down: all, or nothing."""
        ...

    async def known(self, wanted: Sequence[DeploymentId], month: str) -> Sequence[DurablyKnown]:
        """Returns what is known of the month of each deployment, in order."""
        ...

    async def purge(self, before: str) -> None:
        """Deletes the months before `before`."""
        ...


class Checkpoints:
    """Writes down what the ledgers know, and knows what a month counts from."""

    def __init__(
        self, durable: Durable, ledger: Ledger, own: OwnUse, patience_seconds: float
    ) -> None:
        self._durable = durable
        self._ledger = ledger
        self._own = own
        self._patience = patience_seconds
        self._saving = asyncio.Lock()
        meter = metrics.get_meter("bulkhead")
        self._saved = meter.create_counter("bulkhead.ratelimit.checkpoints", unit="{checkpoint}")
        self._unsaved = meter.create_gauge("bulkhead.ratelimit.unsaved", unit="{deployment}")
        self._failing = False

    async def floors(self, wanted: Sequence[DeploymentId], month: str) -> list[int]:
        """Returns what Valkey forgot: the higher of what is durable and what is remembered here.

        Raises:
            MonthUnknownError: the durable counts are away.
        """
        known = await self._known(wanted, month)
        return [
            max(each.counted, self._highest(deployment_id, month) or 0)
            for deployment_id, each in zip(wanted, known, strict=True)
        ]

    async def starts(self, wanted: Sequence[DeploymentId], month: str) -> dict[DeploymentId, Start]:
        """Returns from what the month counts on without Valkey.

        With the durable counts away, as it is remembered here; who is not, is not in the result.
        """
        try:
            known = await self._known(wanted, month)
        except MonthUnknownError:
            return self._remembered(wanted, month)
        return {
            deployment_id: Start(
                max(each.counted, self._highest(deployment_id, month) or 0),
                max(each.to_replay, self._own.pending(deployment_id, month)),
            )
            for deployment_id, each in zip(wanted, known, strict=True)
        }

    async def save(self) -> None:
        """Writes down everything that is not yet.

        Raises:
            UnavailableError: it cannot be; it stays to be written down.
        """
        async with self._saving:
            counts, uses, done = self._ledger.unsaved(), self._own.unsaved(), self._own.to_settle()
            self._unsaved.set(len(counts) + len(uses))
            if not (counts or uses or done):
                return
            try:
                await self._durable.save(counts, uses, done)
            except UnavailableError:
                self._noted(failing=True)
                raise
            self._ledger.saved(counts)
            self._own.saved(uses)
            self._own.settled(done)
            self._noted(failing=False)
        self._unsaved.set(0)

    async def forget(self, now_us: int) -> None:
        """Drops what need not be remembered, here and in the durable counts.

        Raises:
            UnavailableError: the durable counts are away.
        """
        month = month_at(now_us).name
        self._ledger.forget(now_us - RETAINED_US)
        self._own.forget(month)
        await self._durable.purge(months_before(month, MONTHS_KEPT - 1))

    def _highest(self, deployment_id: DeploymentId, month: str) -> int | None:
        seen = self._ledger.highest(deployment_id, month)
        replayed = self._own.counted(deployment_id, month)
        return replayed if seen is None else max(seen, replayed or 0)

    async def _known(self, wanted: Sequence[DeploymentId], month: str) -> Sequence[DurablyKnown]:
        try:
            async with asyncio.timeout(self._patience):
                return await self._durable.known(wanted, month)
        except (UnavailableError, TimeoutError) as error:
            raise MonthUnknownError from error

    def _remembered(self, wanted: Sequence[DeploymentId], month: str) -> dict[DeploymentId, Start]:
        return {
            deployment_id: Start(highest, self._own.pending(deployment_id, month))
            for deployment_id in wanted
            if (highest := self._highest(deployment_id, month)) is not None
        }

    def _noted(self, *, failing: bool) -> None:
        self._saved.add(1, {"outcome": "failed" if failing else "saved"})
        if failing is not self._failing:
            self._failing = failing
            log = structlog.get_logger()
            (log.warning if failing else log.info)("checkpoints", failing=failing)
