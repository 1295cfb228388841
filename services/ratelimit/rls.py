"""The use case of Envoy's rate limit API: limits of the platform's own routes, by descriptors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from opentelemetry import metrics

from services.ratelimit.descriptors import Applied, Descriptor, Domains, applied
from services.ratelimit.windows import Counted, Mode, Outcome
from services.shared.errors import FailedPreconditionError, InvalidFieldError, Reason

MOST_DESCRIPTORS = 64
MOST_ENTRIES = 32


class Configuration(Protocol):
    """Knows the limits that hold now."""

    @property
    def domains(self) -> Domains:
        """The rules of each domain."""
        ...


class WindowCounts(Protocol):
    """Counts next to the counters."""

    async def count(self, domain: str, wanted: Sequence[Counted]) -> Sequence[Outcome]:
        """Returns one outcome per wanted count, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Status:
    """The answer to one descriptor.

    Without a limit nothing applies to it; without an outcome, any number is admitted.
    """

    applied: Applied | None = None
    outcome: Outcome | None = None

    @property
    def over_limit(self) -> bool:
        """Whether it refuses the request."""
        if self.applied is None or self.outcome is None:
            return False
        return self.outcome.over and self.applied.mode is not Mode.SHADOW


class DescriptorLimits:
    """Decides requests of an Envoy: all of their hits are counted, or none."""

    def __init__(self, configuration: Configuration | None, counts: WindowCounts) -> None:
        self._configuration = configuration
        self._counts = counts
        self._hits = metrics.get_meter("bulkhead").create_counter(
            "bulkhead.ratelimit.descriptors", unit="{descriptor}"
        )

    async def decide(self, domain: str, wanted: Sequence[Descriptor]) -> list[Status]:
        """Returns one status per descriptor, in order.

        A domain or a descriptor that no file names has no limit.

        Raises:
            InvalidFieldError: the request has no domain, or descriptors that cannot be decided.
            FailedPreconditionError: this service was given no limits at all.
            UnavailableError: the counters are away; nothing is known, so nothing is open.
        """
        _check(domain, wanted)
        level = self._domains().get(domain)
        if level is None:
            self._hits.add(len(wanted), {"domain": "", "rule": "", "result": "unknown_domain"})
            return [Status() for _ in wanted]
        found = applied(level, wanted)
        statuses = await self._statuses(domain, found, wanted)
        for status in statuses:
            self._note(domain, status)
        return statuses

    def _domains(self) -> Domains:
        if self._configuration is None:
            raise FailedPreconditionError(
                "no limits are configured: set ratelimit_config", Reason.RESOURCE_NOT_DECLARED
            )
        return self._configuration.domains

    async def _statuses(
        self, domain: str, found: Sequence[Applied | None], wanted: Sequence[Descriptor]
    ) -> list[Status]:
        counted = [
            None if each is None else each.counted(descriptor.hits)
            for each, descriptor in zip(found, wanted, strict=True)
        ]
        asked = [each for each in counted if each is not None]
        outcomes = iter(await self._counts.count(domain, asked) if asked else ())
        return [
            Status(each, None if count is None else next(outcomes))
            for each, count in zip(found, counted, strict=True)
        ]

    def _note(self, domain: str, status: Status) -> None:
        label = status.applied.label if status.applied else ""
        self._hits.add(1, {"domain": domain, "rule": label, "result": _result(status)})


def _result(status: Status) -> str:
    if status.applied is None:
        return "no_limit"
    if status.over_limit:
        return "over_limit"
    return "shadowed" if status.outcome is not None and status.outcome.over else "ok"


def _check(domain: str, wanted: Sequence[Descriptor]) -> None:
    if not domain:
        raise InvalidFieldError("domain", "is needed")
    if not 1 <= len(wanted) <= MOST_DESCRIPTORS:
        raise InvalidFieldError("descriptors", f"must be 1 to {MOST_DESCRIPTORS}")
    for index, descriptor in enumerate(wanted):
        if not 1 <= len(descriptor.entries) <= MOST_ENTRIES:
            raise InvalidFieldError(f"descriptors[{index}].entries", f"must be 1 to {MOST_ENTRIES}")
