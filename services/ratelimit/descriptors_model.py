"""The format in which users of the Go service envoyproxy/ratelimit write down their limits.

What stands in a file and means nothing is refused, so that a slip of the pen is no open door.
"""

from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from services.ratelimit.descriptors import Level, Limit, Rule
from services.ratelimit.windows import Mode, Unit

_MOST_REQUESTS = 2**32 - 1


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReplacedPart(_Part):
    """The name of a limit that another one stands in for."""

    name: str = Field(min_length=1)


class RateLimitPart(_Part):
    """The mapping `rate_limit`."""

    unit: Annotated[Unit | None, BeforeValidator(_lower)] = None
    requests_per_unit: int | None = Field(default=None, ge=0, le=_MOST_REQUESTS)
    unlimited: bool = False
    name: str = ""
    replaces: tuple[ReplacedPart, ...] = ()

    @model_validator(mode="after")
    def _is_whole(self) -> "RateLimitPart":
        if self.unlimited and (self.unit, self.requests_per_unit) != (None, None):
            raise ValueError("unlimited stands without unit and requests_per_unit")
        if not self.unlimited and (self.unit is None or self.requests_per_unit is None):
            raise ValueError("needs unit and requests_per_unit, or unlimited")
        if self.name in {replaced.name for replaced in self.replaces}:
            raise ValueError("replaces itself")
        return self

    def limit(self) -> Limit:
        """Returns the limit that is meant."""
        replaces = frozenset(replaced.name for replaced in self.replaces)
        return Limit(self.requests_per_unit, self.unit or Unit.SECOND, 1, self.name, replaces)


class _LevelPart(_Part):
    descriptors: "tuple[DescriptorPart, ...] | None" = None

    @field_validator("descriptors")
    @classmethod
    def _are_distinct(
        cls, parts: "tuple[DescriptorPart, ...] | None"
    ) -> "tuple[DescriptorPart, ...] | None":
        seen = set()
        for part in parts or ():
            name = (part.key, part.value or None)
            if name in seen:
                value = f" with value {part.value}" if part.value else ""
                raise ValueError(f"key {part.key}{value} is there twice")
            seen.add(name)
        return parts

    def level(self) -> Level:
        """Returns the rules that are meant."""
        return Level([part.rule() for part in self.descriptors or ()])


class DescriptorPart(_LevelPart):
    """One item of a list `descriptors`."""

    key: str = Field(min_length=1)
    # Empty is as good as none.
    value: str | None = None
    rate_limit: RateLimitPart | None = None
    shadow_mode: bool = False
    # Ours: hits are counted although they are over the limit, since they have happened already.
    count_refused: bool = False
    detailed_metric: bool = False
    value_to_metric: bool = False
    share_threshold: bool = False

    @model_validator(mode="after")
    def _is_whole(self) -> "DescriptorPart":
        if self.share_threshold and not (self.value or "").endswith("*"):
            raise ValueError("share_threshold is for a value that ends with *")
        if self.shadow_mode and self.count_refused:
            raise ValueError("shadow_mode counts what is refused: leave out count_refused")
        return self

    def rule(self) -> Rule:
        """Returns the rule that is meant."""
        mode = Mode.SHADOW if self.shadow_mode else Mode.ENFORCED
        return Rule(
            self.key,
            self.value or None,
            self.rate_limit.limit() if self.rate_limit else None,
            Mode.COUNTED if self.count_refused else mode,
            self.share_threshold,
            self.value_to_metric,
            self.detailed_metric,
            self.level(),
        )


class FilePart(_LevelPart):
    """A whole file: the limits of one domain."""

    domain: str = Field(min_length=1)
