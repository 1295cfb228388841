"""What CreateDeployment and UpdateDeployment ask for, checked field by field."""

from datetime import timedelta

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.domain import MOST_NAME_LENGTH, MOST_REQUEST_ID_LENGTH, Wanted
from services.provisioner.rpc.messages import length_of_time
from services.provisioner.updating import Change, Terms
from services.shared.errors import InvalidFieldError
from services.shared.fields import text

_LEAST_IDLE = timedelta(seconds=1)
_MOST_IDLE = timedelta(days=7)


def wanted(request: pb2.CreateDeploymentRequest, terms: Terms) -> Wanted:
    """Returns what is to be made.

    Raises:
        InvalidFieldError: a field cannot be used as it is.
    """
    _check_database(request)
    idle = _idle(request)
    return Wanted(
        request_id=text("request_id", request.request_id, most=MOST_REQUEST_ID_LENGTH),
        name=text("name", request.name, most=MOST_NAME_LENGTH),
        mcp=request.mcp,
        database=request.database,
        bucket=request.bucket,
        bootstrap_admin=request.bootstrap_admin,
        storage_bytes=_storage(request.storage_bytes or terms.storage_bytes_usual, terms),
        idle_timeout=terms.idle_usual if idle is None else idle,
    )


def change(request: pb2.UpdateDeploymentRequest, terms: Terms) -> Change:
    """Returns what is to be different.

    Raises:
        InvalidFieldError: a field cannot be used as it is.
    """
    storage = None
    if request.HasField("storage_bytes"):
        storage = _storage(request.storage_bytes, terms)
    return Change(storage_bytes=storage, idle_timeout=_idle(request))


def _check_database(request: pb2.CreateDeploymentRequest) -> None:
    """Raises InvalidFieldError for what only a deployment with a database has."""
    if request.database:
        return
    for field, declared in (
        ("mcp", request.mcp),
        ("storage_bytes", bool(request.storage_bytes)),
        ("idle_timeout", request.HasField("idle_timeout")),
    ):
        if declared:
            raise InvalidFieldError(field, "needs database")


def _storage(value: int, terms: Terms) -> int:
    if not 1 <= value <= terms.storage_bytes_most:
        raise InvalidFieldError("storage_bytes", f"must be 1 to {terms.storage_bytes_most}")
    return value


def _idle(
    request: pb2.CreateDeploymentRequest | pb2.UpdateDeploymentRequest,
) -> timedelta | None:
    if not request.HasField("idle_timeout"):
        return None
    idle = length_of_time("idle_timeout", request.idle_timeout, most=_MOST_IDLE)
    if timedelta(0) < idle < _LEAST_IDLE:
        raise InvalidFieldError("idle_timeout", "must be zero, or at least a second")
    return idle
