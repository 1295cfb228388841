"""Tenants, keys and scopes: the rules, without any store."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from services.shared.errors import (
    FailedPreconditionError,
    InvalidFieldError,
    PermissionDeniedError,
    Reason,
)
from services.shared.ids import KeyId, TenantId
from services.shared.principal import KeyKind, Plan, Principal, permits

OPERATOR_SCOPES = frozenset({"keyring:write", "support:write", "tenants:write"})
# Not `plan:write`: a tenant does not choose what it pays.
TENANT_SCOPES = frozenset(
    {
        "audit:read",
        "connections:write",
        "db:write",
        "deployments:write",
        # No method opens to a tenant's key with these two: a key gives only what it holds.
        "environment:read",
        "tokens:read",
        "keys:write",
        "secrets:write",
        "tenants:write",
        "usage:read",
    }
)
# A deployment's key works in its own deployment; it makes and changes none.
USUAL_DEPLOYMENT_SCOPES = frozenset(
    {"connections:read", "db:write", "deployments:read", "tokens:read", "usage:read"}
)
# Its secrets are for the deployment itself: a key that others hold, as those of agents, has no use
# for them, so that they must be asked for by name (P-09).
DEPLOYMENT_SCOPES = USUAL_DEPLOYMENT_SCOPES | {"environment:read"}
# A connection's key gets tokens of that connection, and nothing else.
CONNECTION_SCOPES = frozenset({"tokens:read"})
# What a job may do, as far as the key that it was asked for with may.
JOB_SCOPES = frozenset({"deployments:write", "tenants:write"})
# A job that closes its tenant asks for more.
USUAL_JOB_SCOPES = frozenset({"deployments:write"})

_POSSIBLE: Mapping[KeyKind, frozenset[str]] = MappingProxyType(
    {
        KeyKind.TENANT: TENANT_SCOPES,
        KeyKind.DEPLOYMENT: DEPLOYMENT_SCOPES,
        KeyKind.CONNECTION: CONNECTION_SCOPES,
    }
)
_USUAL: Mapping[KeyKind, frozenset[str]] = MappingProxyType(
    {**_POSSIBLE, KeyKind.DEPLOYMENT: USUAL_DEPLOYMENT_SCOPES}
)


class OwnedKind(StrEnum):
    """What a key can be confined to; the kind of such a key has the same name."""

    DEPLOYMENT = "deployment"
    CONNECTION = "connection"


@dataclass(frozen=True, slots=True)
class Owned:
    """A deployment or a connection, by its id."""

    kind: OwnedKind
    id: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer."""

    tenant_id: TenantId
    name: str
    plan: Plan
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Key:
    """A key as it may be shown: without its secret."""

    key_id: KeyId
    kind: KeyKind
    # The one thing that it opens; None for what its tenant has.
    owned: Owned | None
    name: str
    scopes: frozenset[str]
    hint: str
    created_at: datetime
    revoked_at: datetime | None
    expires_at: datetime | None = None
    # The minute of the last use.
    last_used_at: datetime | None = None
    successor: KeyId | None = None
    # Why the operator gave itself this key; None for the tenant's own.
    support_reason: str | None = None
    # The last revocation that named it.
    announced: int | None = None

    def ended(self, now: datetime) -> bool:
        """Whether the key is revoked, expired, or has a successor."""
        expired = self.expires_at is not None and self.expires_at <= now
        return self.revoked_at is not None or expired or self.successor is not None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key on its way into the store; only its peppered digest goes there."""

    key_id: KeyId
    kind: KeyKind
    # The one thing that it opens; None for what its tenant has.
    owned: Owned | None
    digest: bytes
    # Of the pepper in `digest`.
    pepper_id: str
    hint: str
    name: str
    scopes: frozenset[str]
    issued_by: KeyId
    request_id: str
    bound_peer: str | None = None
    expires_at: datetime | None = None
    # The key whose place it takes, and how long that one works on.
    predecessor: KeyId | None = None
    grace: timedelta | None = None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key at the only moment when its secret is known."""

    key_id: KeyId
    key: str
    kind: KeyKind
    # The one thing that it opens; None for what its tenant has.
    owned: Owned | None
    scopes: frozenset[str]
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class JobLifetimes:
    """For how long a job's key is valid."""

    usual: timedelta
    # Of a closed tenant, of which no other key is left.
    closing: timedelta


@dataclass(frozen=True, slots=True)
class Revocation:
    """The keys that one transaction revoked."""

    sequence: int
    key_ids: tuple[KeyId, ...]


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """A watcher's word that it has forgotten what the revocations up to `sequence` name."""

    peer: str
    watcher_id: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Lease:
    """What a watcher is told: trust what is left, once this is forgotten too."""

    revocations: tuple[Revocation, ...]
    # What has to be forgotten is not kept any more, or too much to tell.
    forget_all: bool
    # The last revocation.
    sequence: int
    # From when the watcher asked.
    length: timedelta


@dataclass(frozen=True, slots=True)
class Watcher:
    """A process that remembers keys."""

    peer: str
    watcher_id: str
    acknowledged: int
    leased_until: datetime


@dataclass(frozen=True, slots=True)
class Effect:
    """Since when something holds everywhere, and of how many watchers that was awaited."""

    effective_at: datetime
    acknowledged: int
    # Silent until their leases had run out.
    fenced: int


@dataclass(frozen=True, slots=True)
class Rotated:
    """The successor, and when the key that it replaces stops working."""

    issued: IssuedKey
    old_expires_at: datetime
    # The revocation that tells what changed.
    announced: int


def check_held(scopes: Iterable[str], issuer: Principal) -> None:
    """Returns when the issuer holds every one of the scopes itself.

    Raises:
        PermissionDeniedError: it lacks one, so it cannot give it.
    """
    for scope in sorted(scopes):
        if not issuer.permits(scope):
            raise PermissionDeniedError(
                f"the key lacks the scope {scope}, so it cannot give it",
                Reason.SCOPE_MISSING,
                metadata={"scope": scope},
            )


def earliest(*times: datetime | None) -> datetime | None:
    """Returns the first of the times; None when there is none, which means never."""
    return min((at for at in times if at is not None), default=None)


def key_ended() -> FailedPreconditionError:
    """Returns the refusal to replace a key that has ended or has been replaced."""
    return FailedPreconditionError(
        "the key is revoked, expired or replaced already", Reason.KEY_ENDED
    )


def job_scopes(asked: Iterable[str], issuer: Principal) -> frozenset[str]:
    """Returns the scopes of a job's key; none asked for: those to make and end deployments.

    A job that asks for none has its own again.

    Raises:
        InvalidFieldError: a scope that no job can have.
        PermissionDeniedError: a scope that the issuer does not hold itself.
    """
    own = issuer.scopes if issuer.kind is KeyKind.JOB else USUAL_JOB_SCOPES
    scopes = frozenset(asked) or own
    if not scopes <= JOB_SCOPES:
        raise InvalidFieldError("scopes", f"must be of: {', '.join(sorted(JOB_SCOPES))}")
    check_held(scopes, issuer)
    return scopes


def id_of(kind: OwnedKind, owned: Owned | None) -> str | None:
    """Returns the id of what is owned when it is of that kind."""
    return owned.id if owned is not None and owned.kind is kind else None


def granted_scopes(kind: KeyKind, asked: Iterable[str], issuer: Principal) -> frozenset[str]:
    """Returns the scopes of a new key; none asked for: the usual ones of its kind that are held.

    Raises:
        InvalidFieldError: a scope that this kind of key cannot have.
        PermissionDeniedError: a scope that the issuer does not hold itself.
    """
    possible, usual = _POSSIBLE[kind], _USUAL[kind]
    scopes = frozenset(asked) or frozenset(s for s in usual if issuer.permits(s)) or usual
    for scope in sorted(scopes):
        if not permits(possible, scope):
            known = ", ".join(sorted(possible))
            raise InvalidFieldError(
                "scopes", f"{scope!r} is not one of: {known} (or :read of them)"
            )
    check_held(scopes, issuer)
    return scopes
