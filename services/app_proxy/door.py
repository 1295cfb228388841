"""The rules of the front door: what a request presents, and what each refusal says."""

import hmac
import math
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from services.app_proxy.rate_limit_headers import Quota
from services.app_proxy.routes import Route, RouteState
from services.shared.errors import Reason, UnavailableError
from services.shared.principal import KeyKind, Principal

_SCHEME = "bearer"
# How soon it makes sense to look again at a deployment that is being made; seconds.
_STARTING_RETRY_SECONDS = 1
# The same of one that could not be made: someone has to act first.
_FAILED_RETRY_SECONDS = 60
_CHALLENGE = 'Bearer realm="bulkhead"'


class Decision(StrEnum):
    """`bulkhead.ratelimit.v1.Decision`."""

    ALLOWED = "allowed"
    BURST_EXCEEDED = "burst_exceeded"
    QUOTA_EXCEEDED = "quota_exceeded"
    KEY_INVALID = "key_invalid"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Allowance:
    """The limiter's decision; `retry_after` is set when it is a refusal that passes.

    Without quotas the limiter did not say how the limits stand.
    """

    decision: Decision
    retry_after: timedelta | None = None
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True, slots=True)
class Visit:
    """What a request presents at the door: its authority and its `authorization` header."""

    authority: str
    authorization: str | None


@dataclass(frozen=True, slots=True)
class Guest:
    """A request that may go on: where to, for whom, and with which key."""

    route: Route
    principal: Principal
    key: str
    # How its limits stand, this request counted.
    quotas: tuple[Quota, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer that ends the request (RFC 9457)."""

    status: int
    reason: Reason
    title: str
    detail: str
    # Whole seconds, rounded up (RFC 9110, 10.2.3).
    retry_after: int | None = None
    # The value of WWW-Authenticate (RFC 6750, 3).
    challenge: str | None = None
    # How the limits stand, of whoever is over one of them.
    quotas: tuple[Quota, ...] = ()


def presented_key(authorization: str | None) -> str | None:
    """Returns what follows `Bearer` in the header; None when nothing does (RFC 6750, 2.1)."""
    scheme, _, key = (authorization or "").strip().partition(" ")
    return (key.strip() or None) if scheme.lower() == _SCHEME else None


def opens(principal: Principal | None, route: Route) -> bool:
    """Whether a key of `principal` opens `route`: only a key of exactly that deployment (P-04).

    The comparison is done, and takes the same time, whoever the key is of.
    """
    presented = (principal.deployment_id or "") if principal is not None else ""
    same = hmac.compare_digest(presented.encode(), route.deployment_id.encode())
    tenant = (principal.tenant_id or "") if principal is not None else ""
    owned = hmac.compare_digest(tenant.encode(), route.tenant_id.encode())
    bound = principal is not None and principal.kind is KeyKind.DEPLOYMENT
    return same & owned & bound


def not_running(route: Route) -> Refusal | None:
    """Returns the refusal of a deployment that is not running; None when it is."""
    match route.state:
        case RouteState.RUNNING:
            return None
        case RouteState.STARTING:
            return Refusal(
                503,
                Reason.DEPLOYMENT_NOT_READY,
                "The deployment is being made",
                "It will answer in a moment.",
                retry_after=_STARTING_RETRY_SECONDS,
            )
        case RouteState.FAILED:
            return Refusal(
                503,
                Reason.OPERATION_FAILED,
                "The deployment could not be made",
                "Its operation says why; delete it or create another.",
                retry_after=_FAILED_RETRY_SECONDS,
            )
        case RouteState.SUSPENDED:
            return suspended()


def suspended() -> Refusal:
    """Returns the refusal of a deployment that is suspended: no waiting ends that."""
    return Refusal(
        402,
        Reason.DEPLOYMENT_SUSPENDED,
        "The deployment is suspended",
        "It will answer again when its owner resumes it.",
    )


def unknown_host() -> Refusal:
    """Returns the refusal of a host that is nobody's."""
    return Refusal(404, Reason.RESOURCE_NOT_FOUND, "Unknown host", "No deployment has this host.")


def unknown_path() -> Refusal:
    """Returns the refusal of a path that the deployment does not serve."""
    return Refusal(404, Reason.RESOURCE_NOT_FOUND, "Not found", "Nothing is served at this path.")


def forbidden(scope: str) -> Refusal:
    """Returns the refusal of a valid key that lacks `scope`."""
    return Refusal(
        403, Reason.SCOPE_MISSING, "The key does not reach", f"The key lacks the scope {scope}."
    )


def key_missing() -> Refusal:
    """Returns the refusal of a request without a key."""
    return Refusal(
        401,
        Reason.KEY_MISSING,
        "A key is needed",
        "Present a key of the deployment as `Authorization: Bearer …`.",
        challenge=_CHALLENGE,
    )


def key_invalid() -> Refusal:
    """Returns the one refusal of every key that does not open the deployment (P-04, P-41)."""
    return Refusal(
        401,
        Reason.KEY_INVALID,
        "The key is not valid",
        "The key is unknown, revoked, or not of this deployment.",
        challenge=f'{_CHALLENGE}, error="invalid_token"',
    )


def unavailable(error: UnavailableError) -> Refusal:
    """Returns the refusal while something that is needed is away: never an open door."""
    return Refusal(
        503,
        error.reason,
        "Temporarily unavailable",
        "Something that is needed to check this request is away.",
        retry_after=_whole_seconds(error.retry_after),
    )


def overloaded() -> Refusal:
    """Returns the refusal of a request that came while too many were in flight."""
    return Refusal(
        503,
        Reason.OVERLOADED,
        "Too many requests in flight",
        "The deployment has too many requests in flight.",
        retry_after=1,
    )


def over_limit(allowance: Allowance) -> Refusal | None:
    """Returns the refusal that the limiter's decision asks for; None when it is allowed (P-05)."""
    match allowance.decision:
        case Decision.ALLOWED:
            return None
        case Decision.KEY_INVALID:
            return key_invalid()
        case Decision.UNAVAILABLE:
            return unavailable(UnavailableError("what was used of the month is not known"))
        case Decision.BURST_EXCEEDED:
            reason, title = Reason.BURST_EXCEEDED, "Too many calls at once"
            detail = "The deployment's calls per second are used up."
        case Decision.QUOTA_EXCEEDED:
            reason, title = Reason.QUOTA_EXCEEDED, "The month's calls are used up"
            detail = "The plan's calls of this calendar month (UTC) are used up."
    wait = _whole_seconds(allowance.retry_after)
    return Refusal(429, reason, title, detail, retry_after=wait, quotas=allowance.quotas)


def _whole_seconds(wait: timedelta | None) -> int:
    return max(1, math.ceil(wait.total_seconds())) if wait is not None else 1
