"""How a connection stands: what is kept of it, sealed as it is, and what time has left of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from services.credentials.domain import ConnectionKind, ConnectionState, StateReason
from services.credentials.refusals import needs_reauthorization, not_active
from services.shared.errors import BulkheadError
from services.shared.ids import ConnectionId, TenantId

# A token that the provider issues, as opposed to a secret that the tenant gave us.
ISSUED = frozenset({ConnectionKind.CLIENT_CREDENTIALS, ConnectionKind.AUTHORIZATION_CODE})
_NEVER = timedelta(0)
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Kept:
    """A credential at hand: an access token, a static token or an API key."""

    sealed: bytes = field(repr=False)
    # Of an access token; empty for what is none.
    token_type: str
    expires_at: datetime | None
    # When it was read; None: it does not expire.
    left: timedelta | None
    scopes: tuple[str, ...] | None

    def lives(self, least: timedelta) -> bool:
        """Whether it lived for so long from when it was read."""
        return self.left is None or self.left >= least


@dataclass(frozen=True, slots=True)
class Standing:
    """One connection, read in one statement; all times are by the database's clock."""

    connection_id: ConnectionId
    tenant_id: TenantId
    provider: str
    kind: ConnectionKind
    state: ConnectionState
    state_reason: StateReason | None
    parameters: Mapping[str, str]
    scopes: tuple[str, ...] | None
    client_id: str | None
    sealed_client_secret: bytes | None = field(repr=False)
    sealed_refresh_token: bytes | None = field(repr=False)
    generation: int
    # Of a refresh whose outcome nobody wrote down, and since when.
    refresh_attempt: str | None
    refresh_since: timedelta | None
    refresh_failures: int
    # How long the provider is to be left alone yet.
    wait: timedelta
    # The credential for the scopes that were asked about.
    kept: Kept | None

    @property
    def issued(self) -> bool:
        """Whether its tokens are the provider's, and can be had anew from it."""
        return self.kind in ISSUED

    @property
    def renewable(self) -> bool:
        """Whether there is anything with which to ask for a token."""
        return (
            self.kind is ConnectionKind.CLIENT_CREDENTIALS or self.sealed_refresh_token is not None
        )

    def refusal(self) -> BulkheadError | None:
        """Returns why nothing can be vended, as long as its state is this."""
        match self.state:
            case ConnectionState.ACTIVE:
                return None
            case ConnectionState.NEEDS_REAUTHORIZATION:
                reason = self.state_reason or StateReason.GRANT_REFUSED
                return needs_reauthorization(reason, self.kind, self.connection_id)
            case _:
                return not_active()


# Of `connections c LEFT JOIN access_tokens t`.
COLUMNS = (
    "c.connection_id, c.tenant_id, c.provider, c.kind, c.state, c.state_reason, c.parameters,"
    " c.scopes, c.client_id, c.sealed_client_secret, c.sealed_secret, c.secret_expires_at,"
    " c.secret_expires_at - now() AS secret_left, c.sealed_refresh_token, c.generation,"
    " c.refresh_attempt, now() - c.refresh_started_at AS refresh_since, c.refresh_failures,"
    " c.next_refresh_at - now() AS wait, t.sealed_token, t.token_type, t.expires_at AS token_ends,"
    " t.expires_at - now() AS token_left, t.scopes AS token_scopes"
)


def read_standing(row: Mapping[str, Any]) -> Standing:
    """Returns what a row with `COLUMNS` says."""
    reason = row["state_reason"]
    return Standing(
        connection_id=ConnectionId(row["connection_id"]),
        tenant_id=TenantId(row["tenant_id"]),
        provider=row["provider"],
        kind=ConnectionKind(row["kind"]),
        state=ConnectionState(row["state"]),
        state_reason=None if reason is None else StateReason(reason),
        parameters=_NONE if row["parameters"] == "{}" else json.loads(row["parameters"]),
        scopes=_scopes(row["scopes"]),
        client_id=row["client_id"],
        sealed_client_secret=row["sealed_client_secret"],
        sealed_refresh_token=row["sealed_refresh_token"],
        generation=row["generation"],
        refresh_attempt=row["refresh_attempt"],
        refresh_since=row["refresh_since"],
        refresh_failures=row["refresh_failures"],
        wait=max(row["wait"] or _NEVER, _NEVER),
        kept=_kept(row),
    )


def _kept(row: Mapping[str, Any]) -> Kept | None:
    if row["sealed_token"] is not None:
        return Kept(
            row["sealed_token"],
            row["token_type"],
            row["token_ends"],
            row["token_left"],
            _scopes(row["token_scopes"]),
        )
    if row["sealed_secret"] is not None:
        return Kept(
            row["sealed_secret"],
            "",
            row["secret_expires_at"],
            row["secret_left"],
            _scopes(row["scopes"]),
        )
    return None


def _scopes(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)
