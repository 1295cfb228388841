"""Deployments, their operations, and the rules about them."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

from services.shared.errors import (
    FailedPreconditionError,
    NotFoundError,
    Reason,
    UnavailableError,
)
from services.shared.ids import BackupId, DeploymentId, OperationId, TenantId, random_text

MOST_NAME_LENGTH = 63
MOST_REQUEST_ID_LENGTH = 64
_BACKUP_ID = re.compile(r"bak_[0-9a-z]{26}")
_DEPLOYMENT_ID = re.compile(r"dep_[0-9a-z]{26}")
_OPERATION_ID = re.compile(r"op_[0-9a-z]{26}")
_NOT_IN_HOST = re.compile(r"[^a-z0-9]+")
_HOST_RANDOM_LENGTH = 8
# A label of a host name has at most 63 characters (RFC 1035, 2.3.4); the rest is random.
_MOST_SLUG_LENGTH = 63 - 1 - _HOST_RANDOM_LENGTH
# How long a call waits for another one that works on the same deployment.
LOCK_PATIENCE = timedelta(seconds=8)
USUAL_STORAGE_BYTES: Final = 1 << 30
USUAL_IDLE_TIMEOUT: Final = timedelta(minutes=5)
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
    SUSPENDED = "suspended"


class OperationKind(StrEnum):
    """`bulkhead.provisioner.v1.OperationKind`."""

    CREATE = "create"
    DELETE = "delete"
    SUSPEND = "suspend"
    RESUME = "resume"
    ROTATE = "rotate"
    BACK_UP = "back_up"
    DELETE_TENANT = "delete_tenant"


class OperationState(StrEnum):
    """`bulkhead.provisioner.v1.OperationState`."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class Step(StrEnum):
    """What an operation is at; each kind of operation takes its own, in the order of its plan.

    A later release may have more of them. While both run, this one tells of those that it finds by
    their names, and leaves them to the other.
    """

    # Making.
    REGISTERING = "registering"
    ROUTE = "route"
    DATABASE = "database"
    BUCKET = "bucket"
    PUBLISHING = "publishing"
    # Deleting.
    RETIRING = "retiring"
    UNROUTING = "unrouting"
    RELEASING = "releasing"
    UNCOUNTING = "uncounting"
    DESTROYING = "destroying"
    EMPTYING = "emptying"
    DISCARDING = "discarding"
    SHREDDING = "shredding"
    VERIFYING = "verifying"
    CERTIFYING = "certifying"
    # Suspending, and resuming.
    CLOSING = "closing"
    WITHDRAWING = "withdrawing"
    SLEEPING = "sleeping"
    LOCKING = "locking"
    UNLOCKING = "unlocking"
    LENDING = "lending"
    OPENING = "opening"
    # Rotating.
    ISSUING = "issuing"
    SWITCHING = "switching"
    TELLING = "telling"
    OVERLAPPING = "overlapping"
    ENDING = "ending"
    # Backing up.
    COPYING = "copying"
    KEEPING = "keeping"
    # Deleting a tenant.
    CUTTING_OFF = "cutting_off"
    DELETING_DEPLOYMENTS = "deleting_deployments"
    ERASING_LOANS = "erasing_loans"
    ERASING_COUNTERS = "erasing_counters"
    ERASING_OWN = "erasing_own"
    ERASING_KEYS = "erasing_keys"

    @classmethod
    def _missing_(cls, value: object) -> "Step":
        name = str(value)
        unknown = str.__new__(cls, name)
        unknown._name_ = unknown._value_ = name
        return unknown

    @property
    def is_known(self) -> bool:
        """Whether this release knows what is to be done."""
        return self.name in Step.__members__


class ResourceKind(StrEnum):
    """`bulkhead.provisioner.v1.ResourceKind`."""

    KEYS = "keys"
    ROUTE = "route"
    LOANS = "loans"
    COUNTERS = "counters"
    DATABASE = "database"
    BUCKET = "bucket"
    SECRETS = "secrets"
    BACKUPS = "backups"


class ResourceState(StrEnum):
    """`bulkhead.provisioner.v1.ResourceState`."""

    PENDING = "pending"
    READY = "ready"
    SLEEPING = "sleeping"
    SUSPENDED = "suspended"
    DEGRADED = "degraded"
    LOST = "lost"
    GOING = "going"
    GONE = "gone"


class BackupTarget(StrEnum):
    """`bulkhead.provisioner.v1.BackupTarget`."""

    FILE = "file"
    BUCKET = "bucket"


class BackupState(StrEnum):
    """`bulkhead.provisioner.v1.BackupState`; one that is going, or gone, is shown to nobody."""

    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"
    GOING = "going"
    GONE = "gone"


class RouteState(StrEnum):
    """`bulkhead.app_proxy.v1.RouteState`."""

    STARTING = "starting"
    RUNNING = "running"
    FAILED = "failed"
    SUSPENDED = "suspended"


class DatabaseRole(StrEnum):
    """`bulkhead.provisioner.v1.DatabaseRole`; also the role whose rights a login has."""

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
    # Where its database's server was last; it is kept there as long as the port is free.
    database_port: int | None = None
    # Grows when the passwords of its database change.
    generation: int = 1
    # Logins of this generation and before open nothing any more.
    closed_generation: int = 0
    bucket: bool = False
    bootstrap_admin: bool = False
    storage_bytes: int = USUAL_STORAGE_BYTES
    # How long the database is awake without use; zero: always.
    idle_timeout: timedelta = USUAL_IDLE_TIMEOUT
    # Where the database came from.
    source_deployment_id: DeploymentId | None = None
    source_backup_id: BackupId | None = None
    # Where whoever has a connection string is listened to.
    listener_port: int | None = None

    @property
    def declared(self) -> tuple[ResourceKind, ...]:
        """What it is made of from the beginning."""
        kinds = [
            ResourceKind.KEYS,
            ResourceKind.ROUTE,
            ResourceKind.LOANS,
            ResourceKind.COUNTERS,
        ]
        if self.database:
            kinds += [ResourceKind.DATABASE, ResourceKind.BACKUPS]
        if self.bucket:
            kinds.append(ResourceKind.BUCKET)
        if self.bootstrap_admin:
            kinds.append(ResourceKind.SECRETS)
        return tuple(kinds)

    @property
    def open_generations(self) -> tuple[int, ...]:
        """The generations whose logins open the database: two while a rotation's overlap lasts."""
        return tuple(range(self.closed_generation + 1, self.generation + 1))


@dataclass(frozen=True, slots=True)
class Resource:
    """One part of a deployment, and how it is."""

    deployment_id: DeploymentId
    kind: ResourceKind
    state: ResourceState
    reason: str
    since: datetime
    used_bytes: int | None = None
    over_quota: bool = False
    measure_time: datetime | None = None
    access_revoked_time: datetime | None = None
    destroyed_time: datetime | None = None
    verified_gone_time: datetime | None = None
    unrecoverable_after: datetime | None = None
    # What its end is told with.
    details: Mapping[str, Any] = field(default_factory=dict)


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
    # What it is to do, beyond its kind.
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.state is not OperationState.RUNNING


@dataclass(frozen=True, slots=True)
class Described:
    """A deployment, its resources in the order of the kinds, and its last operation."""

    deployment: Deployment
    resources: Sequence[Resource] = ()
    last_operation: Operation | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What CreateDeployment, CreateBranch and RestoreBackup ask for."""

    request_id: str
    name: str
    mcp: bool
    database: bool
    bucket: bool = False
    bootstrap_admin: bool = False
    storage_bytes: int = USUAL_STORAGE_BYTES
    idle_timeout: timedelta = USUAL_IDLE_TIMEOUT
    source_deployment_id: DeploymentId | None = None
    source_backup_id: BackupId | None = None

    def was_met_by(self, deployment: Deployment) -> bool:
        """Whether `deployment` was made for the same wish; what may change since does not count."""
        return (
            self.name,
            self.mcp,
            self.database,
            self.bucket,
            self.bootstrap_admin,
            self.source_deployment_id,
            self.source_backup_id,
        ) == (
            deployment.name,
            deployment.mcp,
            deployment.database,
            deployment.bucket,
            deployment.bootstrap_admin,
            deployment.source_deployment_id,
            deployment.source_backup_id,
        )


@dataclass(frozen=True, slots=True)
class Backup:
    """A copy of a deployment's database, as it was at one moment."""

    backup_id: BackupId
    tenant_id: TenantId
    deployment_id: DeploymentId
    target: BackupTarget
    state: BackupState
    size_bytes: int
    message: str
    create_time: datetime


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where a database listens."""

    host: str
    port: int
    # Of its certificate for `host`, as PEM; empty: it has none, and is on this machine.
    authority: str = ""


@dataclass(frozen=True, slots=True)
class DatabaseConnection:
    """All that is needed to open a database as one of its roles."""

    address: DatabaseAddress
    database: str
    user: str
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


def backup_id(value: str) -> BackupId | None:
    """Returns `value` as an id when it has the shape of one."""
    return BackupId(value) if _BACKUP_ID.fullmatch(value) else None


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


def suspended() -> FailedPreconditionError:
    """Returns the error for a deployment that is suspended."""
    return FailedPreconditionError("the deployment is suspended", Reason.DEPLOYMENT_SUSPENDED)


def check_ready(deployment: Deployment) -> None:
    """Returns when the deployment can be used.

    Raises:
        NotFoundError: it is deleted.
        FailedPreconditionError: it could not be made, or is suspended.
        UnavailableError: it is not ready.
    """
    match deployment.state:
        case DeploymentState.READY:
            return
        case DeploymentState.DELETED:
            raise NotFoundError("deployment")
        case DeploymentState.FAILED:
            raise FailedPreconditionError(
                "the deployment could not be made", Reason.OPERATION_FAILED
            )
        case DeploymentState.SUSPENDED:
            raise suspended()
        case DeploymentState.CREATING | DeploymentState.DELETING:
            raise not_ready()
