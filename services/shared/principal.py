"""For whom a call is made: what a key says about its bearer."""

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.shared.errors import PermissionDeniedError, Reason, UnauthenticatedError
from services.shared.ids import ConnectionId, DeploymentId, KeyId, TenantId


class KeyKind(StrEnum):
    """`bulkhead.common.v1.KeyKind`."""

    OPERATOR = "operator"
    TENANT = "tenant"
    DEPLOYMENT = "deployment"
    CONNECTION = "connection"
    SESSION = "session"
    JOB = "job"


class Plan(StrEnum):
    """`bulkhead.auth.v1.Plan`."""

    FREE = "free"
    PRO = "pro"
    SCALE = "scale"


def permits(scopes: Iterable[str], needed: str) -> bool:
    """Whether `scopes` include `needed`; `subject:write` includes `subject:read`."""
    subject, _, verb = needed.partition(":")
    return needed in scopes or (verb == "read" and f"{subject}:write" in scopes)


@dataclass(frozen=True, slots=True)
class Principal:
    """The bearer of a valid key."""

    key_id: KeyId
    kind: KeyKind
    tenant_id: TenantId | None
    deployment_id: DeploymentId | None
    scopes: frozenset[str]
    plan: Plan
    expires_at: datetime | None = None
    bound_peer: str | None = None
    # Set for a key of one connection.
    connection_id: ConnectionId | None = None

    @property
    def tenant(self) -> TenantId:
        """The tenant; an operator has none and is refused.

        Raises:
            PermissionDeniedError: the key belongs to no tenant.
        """
        if self.tenant_id is None:
            raise PermissionDeniedError("this key belongs to no tenant", Reason.KEY_KIND_REFUSED)
        return self.tenant_id

    def permits(self, scope: str) -> bool:
        """Whether the key carries `scope`."""
        return permits(self.scopes, scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """Both answers about a call: which service makes it, and for whom."""

    peer: str
    principal: Principal | None
    # The presented key itself, to be passed on to the services that this one calls.
    bearer: str | None = None


_caller: ContextVar[Caller] = ContextVar("bulkhead_caller")


def set_caller(caller: Caller) -> None:
    """Sets the caller for the rest of this task; called by the access interceptor."""
    _caller.set(caller)


def current_caller() -> Caller:
    """Returns the caller of the call being served.

    Raises:
        UnauthenticatedError: outside a call.
    """
    caller = _caller.get(None)
    if caller is None:
        raise UnauthenticatedError(Reason.KEY_MISSING)
    return caller


def current_principal() -> Principal:
    """Returns for whom the call being served is made.

    Raises:
        UnauthenticatedError: no key was presented.
    """
    principal = current_caller().principal
    if principal is None:
        raise UnauthenticatedError(Reason.KEY_MISSING)
    return principal
