"""What a refresh is asked for, what it gives, how long it may take, and where it may be watched."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from services.shared.ids import ConnectionId, TenantId


class RefreshPoint(StrEnum):
    """Where a refresh is, in this order; at each of them the process may die."""

    LOCKED = "locked"
    # The attempt is written down; the provider was not asked.
    MARKED = "marked"
    # The provider has answered; nothing of it is kept.
    ANSWERED = "answered"
    # It is kept; the lock is held still.
    KEPT = "kept"


class RefreshObserver(Protocol):
    """Is told how far refreshes are."""

    async def reached(self, point: RefreshPoint) -> None:
        """Returns when the refresh may go on."""
        ...


class Unobserved:
    """Nobody looks on."""

    async def reached(self, point: RefreshPoint) -> None:
        """Returns at once."""


@dataclass(frozen=True, slots=True)
class Want:
    """A token that is asked for."""

    tenant_id: TenantId
    connection_id: ConnectionId
    provider: str
    # '' for all that was granted; see `domain.scope_key`.
    scope_key: str = ""

    @property
    def narrowed_to(self) -> tuple[str, ...]:
        """The scopes that it is narrowed to; empty when it is not."""
        return tuple(self.scope_key.split())


@dataclass(frozen=True, slots=True)
class Fresh:
    """A credential, as it was known at `known_at`."""

    token: str = field(repr=False)
    token_type: str
    expires_at: datetime | None
    # None: it does not expire.
    left: timedelta | None
    scopes: tuple[str, ...] | None
    # Of the steady clock, in seconds.
    known_at: float
    # Beside an API key, where the provider wants one.
    username: str = ""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long things may take."""

    # After an interruption the provider may be at it for so long.
    settle: timedelta
    # Of one request to a provider.
    answer: timedelta

    @property
    def ask_within(self) -> timedelta:
        """How soon after the attempt was written down the provider must be asked.

        Later, the request could reach it when another has taken the attempt over.
        """
        return max(self.settle - self.answer, timedelta(seconds=1))

    @property
    def whole(self) -> timedelta:
        """How long a refresh may take, waiting for another's included."""
        return 2 * self.answer + timedelta(seconds=5)
