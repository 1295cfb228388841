"""Which of what is lent to a deployment an item asks for: the rules, without any store."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.credentials.standings import Standing
from services.shared.errors import (
    BulkheadError,
    FailedPreconditionError,
    InvalidFieldError,
    PermissionDeniedError,
    Reason,
)
from services.shared.ids import BindingId


@dataclass(frozen=True, slots=True)
class Lent:
    """A connection as a key may have it: along a binding, or as the key's own."""

    standing: Standing
    # None: the key is the connection's own.
    binding_id: BindingId | None
    alias: str
    # Empty: no ceiling.
    scope_ceiling: frozenset[str]
    expired: bool
    # Of the token that keeps to the ceiling; None: no scope is left under it.
    scope_key: str | None

    @property
    def narrowed(self) -> bool:
        """Whether less is lent than was granted, or than is known to be."""
        return self.scope_key != ""


@dataclass(frozen=True, slots=True)
class Asked:
    """One item of a vend."""

    alias: str
    provider: str
    purpose: str


def check_named(items: Sequence[Asked]) -> None:
    """Returns when every item says what it asks a deployment's bindings for.

    Raises:
        InvalidFieldError: one names neither an alias nor a provider.
    """
    for number, item in enumerate(items):
        if not (item.alias or item.provider):
            raise InvalidFieldError(f"items[{number}].alias", "name an alias or a provider")


def choose(lent: Sequence[Lent], item: Asked) -> Lent:
    """Returns the one that the item asks for: never a guess.

    Raises:
        PermissionDeniedError: there is none, or its time is over.
        FailedPreconditionError: there are several.
    """
    named = [each for each in lent if _matches(each, item)]
    if not named:
        raise PermissionDeniedError(
            "nothing is bound to the deployment under this name", Reason.BINDING_MISSING
        )
    living = [each for each in named if not each.expired]
    if not living:
        raise PermissionDeniedError("the binding's time is over", Reason.BINDING_EXPIRED)
    if len(living) > 1:
        raise _ambiguous(living)
    return living[0]


def _matches(lent: Lent, item: Asked) -> bool:
    if item.alias and lent.alias != item.alias:
        return False
    return not item.provider or lent.standing.provider == item.provider


def _ambiguous(lent: Sequence[Lent]) -> BulkheadError:
    aliases = ", ".join(each.alias for each in lent)
    return FailedPreconditionError(
        f"several bindings answer to this provider; name one by its alias: {aliases}",
        Reason.BINDING_AMBIGUOUS,
        metadata={"aliases": aliases},
    )
