"""Deployments, their operations, and the rules about them."""

import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from urllib.parse import quote

from services.shared.errors import Reason, UnavailableError
from services.shared.ids import DeploymentId, OperationId, TenantId, random_text

MOST_NAME_LENGTH = 63
MOST_REQUEST_ID_LENGTH = 64
_DEPLOYMENT_ID = re.compile(r"dep_[0-9a-z]{26}")
_OPERATION_ID = re.compile(r"op_[0-9a-z]{26}")
_NOT_IN_HOST = re.compile(r"[^a-z0-9]+")
_HOST_RANDOM_LENGTH = 8
# A label of a host name has at most 63 characters (RFC 1035, 2.3.4); the rest is random.
_MOST_SLUG_LENGTH = 63 - 1 - _HOST_RANDOM_LENGTH
# How long a call waits for another one that works on the same deployment.
LOCK_PATIENCE = timedelta(seconds=8)
_FIRST_RETRY_SECONDS = 0.2
_MOST_RETRY_SECONDS = 15.0
_MOST_DOUBLINGS = 16


class DeploymentState(StrEnum):
    """`bulkhead.provisioner.v1.DeploymentState`."""

    CREATING = "creating"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"
    DELETED = "deleted"


class OperationKind(StrEnum):
    """`bulkhead.provisioner.v1.OperationKind`."""

    CREATE = "create"
    DELETE = "delete"


class OperationState(StrEnum):
    """`bulkhead.provisioner.v1.OperationState`."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Step(StrEnum):
    """What an operation is at, in order: the first four create, the last four delete."""

    REGISTERING = "registering"
    ROUTE = "route"
    DATABASE = "database"
    PUBLISHING = "publishing"
    RETIRING = "retiring"
    UNROUTING = "unrouting"
    RELEASING = "releasing"
    DESTROYING = "destroying"


class RouteState(StrEnum):
    """`bulkhead.app_proxy.v1.RouteState`."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"


class DatabaseRole(StrEnum):
    """`bulkhead.provisioner.v1.DatabaseRole`; also the name of the role in the database."""

    READER = "reader"
    WRITER = "writer"


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a tenant wants to run, and how far that is."""

    deployment_id: DeploymentId
    tenant_id: TenantId
    name: str
    host: str
    state: DeploymentState
    mcp: bool
    database: bool
    create_time: datetime
    # Where its database was last; it is kept there as long as the port is free.
    database_port: int | None = None
    # Grows when the passwords of its database change.
    generation: int = 1


@dataclass(frozen=True, slots=True)
class Operation:
    """Work that goes on after the call that asked for it."""

    operation_id: OperationId
    tenant_id: TenantId
    deployment_id: DeploymentId
    kind: OperationKind
    state: OperationState
    step: Step
    retries: int
    message: str
    create_time: datetime
    end_time: datetime | None = None

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.state is not OperationState.RUNNING


@dataclass(frozen=True, slots=True)
class Wanted:
    """What CreateDeployment asks for."""

    request_id: str
    name: str
    mcp: bool
    database: bool

    def was_met_by(self, deployment: Deployment) -> bool:
        """Whether `deployment` was made for the same wish."""
        return (self.name, self.mcp, self.database) == (
            deployment.name,
            deployment.mcp,
            deployment.database,
        )


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where a database listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class DatabaseConnection:
    """All that is needed to open a database as one of its roles."""

    address: DatabaseAddress
    database: str
    user: DatabaseRole
    password: str = field(repr=False)

    @property
    def uri(self) -> str:
        """The same as a `postgresql://` URI; a secret."""
        where = f"{self.address.host}:{self.address.port}/{self.database}"
        return f"postgresql://{self.user}:{quote(self.password, safe='')}@{where}"


def deployment_id(value: str) -> DeploymentId | None:
    """Returns `value` as an id when it has the shape of one."""
    return DeploymentId(value) if _DEPLOYMENT_ID.fullmatch(value) else None


def operation_id(value: str) -> OperationId | None:
    """Returns `value` as an id when it has the shape of one."""
    return OperationId(value) if _OPERATION_ID.fullmatch(value) else None


def new_host(name: str, domain: str) -> str:
    """Returns a host name: what it can hold of `name`, 40 random bits, and `domain`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    slug = _NOT_IN_HOST.sub("-", plain)[:_MOST_SLUG_LENGTH].strip("-") or "app"
    return f"{slug}-{random_text(_HOST_RANDOM_LENGTH)}.{domain}"


def retry_delay(retries: int, chance: float) -> timedelta:
    """Returns how long to wait after `retries` failures.

    It doubles from 0.2 s to at most 15 s; `chance` (0 to 1) takes up to a half off, so that what
    failed together does not come back together.
    """
    seconds = _FIRST_RETRY_SECONDS * 2.0 ** min(retries, _MOST_DOUBLINGS)
    return timedelta(seconds=min(seconds, _MOST_RETRY_SECONDS) * (1 - chance / 2))


def not_ready() -> UnavailableError:
    """Returns the error for a deployment that is being made, is asleep or is going."""
    return UnavailableError(
        "the deployment is not ready", Reason.DEPLOYMENT_NOT_READY, timedelta(seconds=1)
    )
