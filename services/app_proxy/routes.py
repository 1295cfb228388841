"""Routes: which host belongs to which deployment, and what its host answers."""

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from services.shared.errors import InvalidFieldError
from services.shared.ids import DeploymentId, TenantId

_MOST_HOST_CHARACTERS = 253
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_PORT = re.compile(r":[0-9]{1,5}\Z", re.ASCII)


class RouteState(StrEnum):
    """`bulkhead.app_proxy.v1.RouteState`."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True)
class Route:
    """One deployment's host. A deployment has one route, a host belongs to one deployment."""

    host: str
    deployment_id: DeploymentId
    tenant_id: TenantId
    state: RouteState
    name: str
    mcp: bool
    # Of the database's passwords; it grows.
    database_generation: int = 0


@dataclass(frozen=True, slots=True)
class Erased:
    """What stays of a tenant: when it was erased, and how many routes it had."""

    erased_at: datetime
    routes: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is remembered of a host; no route: it is known to be nobody's."""

    route: Route | None


def host_of(authority: str) -> str | None:
    """Returns the host name in an HTTP authority; None when it holds none (RFC 9110, 7.2).

    Lower case, without the port and the root's dot; what is no name of letters, digits and hyphens
    (an IPv6 literal, user information, a path) is none.
    """
    host = _PORT.sub("", authority.lower(), count=1).removesuffix(".")
    if len(host) > _MOST_HOST_CHARACTERS or _HOST.fullmatch(host) is None:
        return None
    return host


def routable_host(field: str, host: str, domain: str) -> str:
    """Returns `host` when it is one label below the platform's `domain` (P-11).

    Raises:
        InvalidFieldError: it is not. A host elsewhere needs proof that it is the tenant's.
    """
    label, _, rest = host.partition(".")
    if host_of(host) != host or not label or rest != domain:
        raise InvalidFieldError(field, f"must be one lower-case label below {domain}")
    return host
