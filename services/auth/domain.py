"""Tenants, keys and scopes: the rules, without any store."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from services.shared.errors import InvalidFieldError, PermissionDeniedError, Reason
from services.shared.ids import DeploymentId, KeyId, TenantId
from services.shared.principal import KeyKind, Plan, Principal, permits

OPERATOR_SCOPES = frozenset({"tenants:write"})
TENANT_SCOPES = frozenset(
    {"audit:read", "db:write", "deployments:write", "keys:write", "tenants:read", "usage:read"}
)
# A deployment's key works in its own deployment; it makes and changes none.
DEPLOYMENT_SCOPES = frozenset({"db:write", "deployments:read", "usage:read"})
JOB_SCOPES = frozenset({"deployments:write"})

_MOST_SHOWN = 40


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
    deployment_id: DeploymentId | None
    name: str
    scopes: frozenset[str]
    hint: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key on its way into the store; only its peppered digest goes there."""

    key_id: KeyId
    kind: KeyKind
    deployment_id: DeploymentId | None
    digest: bytes
    hint: str
    name: str
    scopes: frozenset[str]
    issued_by: KeyId
    request_id: str
    bound_peer: str | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A key at the only moment when its secret is known."""

    key_id: KeyId
    key: str
    kind: KeyKind
    deployment_id: DeploymentId | None
    scopes: frozenset[str]
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Revocation:
    """The keys that one transaction revoked."""

    sequence: int
    key_ids: tuple[KeyId, ...]


def granted_scopes(kind: KeyKind, asked: Iterable[str], issuer: Principal) -> frozenset[str]:
    """Returns the scopes of a new key; none asked for: all that its kind may have.

    Raises:
        InvalidFieldError: a scope that this kind of key cannot have.
        PermissionDeniedError: a scope that the issuer does not hold itself.
    """
    possible = TENANT_SCOPES if kind is KeyKind.TENANT else DEPLOYMENT_SCOPES
    scopes = frozenset(asked) or frozenset(s for s in possible if issuer.permits(s))
    for scope in sorted(scopes):
        if not permits(possible, scope):
            known = ", ".join(sorted(possible))
            raise InvalidFieldError(
                "scopes", f"{scope!r} is not one of: {known} (or :read of them)"
            )
        if not issuer.permits(scope):
            raise PermissionDeniedError(
                f"the key lacks the scope {scope}, so it cannot give it",
                Reason.SCOPE_MISSING,
                metadata={"scope": scope},
            )
    return scopes
