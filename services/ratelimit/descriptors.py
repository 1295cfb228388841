"""Which limit applies to a descriptor: the rules of a domain, and how they are matched.

As the Go service envoyproxy/ratelimit matches them: level by level; at each level the rule with
exactly the entry's value, or else the first whose value ends in `*` and begins the entry's, or else
the one without a value. A limit applies when its rule is that of the last entry. There is no way
back: when a more specific rule leads nowhere, a less specific one is not tried.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from services.ratelimit.windows import Counted, Mode, Unit

_WILDCARD = "*"


class Entry(NamedTuple):
    """One key and value of a descriptor."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Limit:
    """Hits that are admitted in each window of `multiplier` units; None: any number."""

    requests: int | None
    unit: Unit = Unit.SECOND
    multiplier: int = 1
    name: str = ""
    # Names of limits that do not apply to a request to which this one applies.
    replaces: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rule:
    """One item of a list `descriptors` in a file."""

    key: str
    # None: any value that no other rule is for.
    value: str | None = None
    limit: Limit | None = None
    mode: Mode = Mode.ENFORCED
    # Every value that the `*` stands for is counted together.
    share_threshold: bool = False
    # The value is told in metrics: of this rule, or of every rule above it too.
    value_to_metric: bool = False
    detailed_metric: bool = False
    below: "Level" = field(default_factory=lambda: Level(()))

    @property
    def is_wildcard(self) -> bool:
        """Whether its value stands for all that begin with it."""
        return self.value is not None and self.value.endswith(_WILDCARD)


class Level:
    """The rules of one list; no two have the same key and value."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = {(rule.key, rule.value): rule for rule in rules}
        self._wildcards = [rule for rule in rules if rule.is_wildcard]

    def rule_for(self, entry: Entry) -> Rule | None:
        """Returns the most specific rule for `entry`."""
        exact = self._rules.get((entry.key, entry.value))
        return exact or self._wildcard_for(entry) or self._rules.get((entry.key, None))

    def _wildcard_for(self, entry: Entry) -> Rule | None:
        for rule in self._wildcards:
            prefix = (rule.value or "").removesuffix(_WILDCARD)
            if rule.key == entry.key and entry.value.startswith(prefix):
                return rule
        return None


Domains = Mapping[str, Level]


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a request asks about; negative hits are given back."""

    entries: tuple[Entry, ...]
    hits: int
    # Stands in for the limit in the file.
    override: Limit | None = None


@dataclass(frozen=True, slots=True)
class Applied:
    """The limit that applies to a descriptor, and what it is counted under."""

    limit: Limit
    mode: Mode
    # Which hits are counted together, within the domain; the window comes beside.
    counter: str
    # How metrics name it: from the file, without values unless it says so.
    label: str

    def counted(self, hits: int) -> Counted | None:
        """Returns what to count; None where there is nothing to keep count of."""
        if self.limit.requests is None:
            return None
        return Counted(
            self.counter,
            self.limit.unit,
            self.limit.multiplier,
            self.limit.requests,
            hits,
            self.mode,
        )


def applied(level: Level, wanted: Sequence[Descriptor]) -> list[Applied | None]:
    """Returns what applies to each descriptor of one request, None where nothing does."""
    found = [_applied(level, descriptor) for descriptor in wanted]
    replaced = {name for each in found if each is not None for name in each.limit.replaces}
    return [None if each is not None and each.limit.name in replaced else each for each in found]


def _applied(level: Level, descriptor: Descriptor) -> Applied | None:
    entries = descriptor.entries
    if descriptor.override is not None:
        limit = descriptor.override
        counter = _counter([entry.value for entry in entries], entries, limit)
        return Applied(limit, Mode.ENFORCED, counter, "override")
    rules = _path(level, entries)
    if rules is None or (limit_or_none := rules[-1].limit) is None:
        return None
    values = [_counted_value(rule, entry) for rule, entry in zip(rules, entries, strict=True)]
    counter = _counter(values, entries, limit_or_none)
    return Applied(limit_or_none, rules[-1].mode, counter, _label(rules, entries))


def _path(level: Level, entries: Sequence[Entry]) -> list[Rule] | None:
    rules: list[Rule] = []
    for entry in entries:
        rule = level.rule_for(entry)
        if rule is None:
            return None
        rules.append(rule)
        level = rule.below
    return rules


def _counted_value(rule: Rule, entry: Entry) -> str:
    shared = rule.share_threshold and rule.value is not None
    return rule.value or "" if shared else entry.value


def _counter(values: Sequence[str], entries: Sequence[Entry], limit: Limit) -> str:
    # With their lengths, so that no two descriptors are spelt alike.
    parts = [limit.unit.value, str(limit.multiplier)]
    for entry, value in zip(entries, values, strict=True):
        parts += [entry.key, value]
    return "".join(f"{len(part)}:{part}" for part in parts)


def _label(rules: Sequence[Rule], entries: Sequence[Entry]) -> str:
    detailed = rules[-1].detailed_metric
    return ".".join(
        _segment(rule, entry, detailed=detailed) for rule, entry in zip(rules, entries, strict=True)
    )


def _segment(rule: Rule, entry: Entry, *, detailed: bool) -> str:
    told = (detailed or rule.value_to_metric) and not rule.share_threshold
    value = entry.value if told else rule.value
    return f"{rule.key}_{value}" if value else rule.key
