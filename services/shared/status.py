"""Domain errors to `google.rpc.Status` and back; raw driver errors never leave."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.shared.errors import (
    AlreadyExistsError,
    BulkheadError,
    DeadlineTooShortError,
    FailedPreconditionError,
    InvalidFieldError,
    LimitExceededError,
    NotFoundError,
    PermissionDeniedError,
    Reason,
    UnauthenticatedError,
    UnavailableError,
)

DOMAIN = "bulkhead"
_CODES: dict[type[BulkheadError], int] = {
    InvalidFieldError: code_pb2.INVALID_ARGUMENT,
    UnauthenticatedError: code_pb2.UNAUTHENTICATED,
    PermissionDeniedError: code_pb2.PERMISSION_DENIED,
    NotFoundError: code_pb2.NOT_FOUND,
    AlreadyExistsError: code_pb2.ALREADY_EXISTS,
    FailedPreconditionError: code_pb2.FAILED_PRECONDITION,
    LimitExceededError: code_pb2.RESOURCE_EXHAUSTED,
    UnavailableError: code_pb2.UNAVAILABLE,
    DeadlineTooShortError: code_pb2.DEADLINE_EXCEEDED,
}


def to_status(error: BulkheadError) -> status_pb2.Status:
    """Returns the rich status that tells a caller about `error`."""
    status = status_pb2.Status(
        code=_CODES.get(type(error), code_pb2.INTERNAL), message=error.message
    )
    for detail in _details(error):
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def internal_status(error_id: str) -> status_pb2.Status:
    """Returns the status for a fault of ours: an id that finds it in the log, and nothing else."""
    return to_status(
        BulkheadError(
            f"internal error {error_id}", Reason.INTERNAL, metadata={"error_id": error_id}
        )
    )


def from_rpc_error(error: grpc.aio.AioRpcError) -> BulkheadError:
    """Returns the domain error that a peer raised; a peer that is away is UnavailableError."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an AioRpcError is a call too
    info, retry, field = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), None
    violations = error_details_pb2.BadRequest()
    for detail in status.details if status else ():
        detail.Unpack(info)
        detail.Unpack(retry)
        if detail.Unpack(violations) and violations.field_violations:
            field = violations.field_violations[0]
    if info.domain != DOMAIN or info.reason not in Reason.__members__:
        return UnavailableError("a service that is needed is away")
    reason, message = Reason(info.reason), error.details() or ""
    if field is not None:
        return InvalidFieldError(field.field, field.description, reason)
    wait = retry.retry_delay.ToTimedelta() if retry.HasField("retry_delay") else None
    return _rebuilt(error.code(), reason, message, wait, dict(info.metadata))


@contextmanager
def translated() -> Iterator[None]:
    """Turns what a peer answers inside the block into domain errors."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def _rebuilt(  # noqa: PLR0911 one line for each code
    code: grpc.StatusCode,
    reason: Reason,
    message: str,
    wait: timedelta | None,
    metadata: dict[str, str],
) -> BulkheadError:
    match code:
        case grpc.StatusCode.UNAUTHENTICATED:
            return UnauthenticatedError(reason)
        case grpc.StatusCode.PERMISSION_DENIED:
            return PermissionDeniedError(message, reason, metadata=metadata)
        case grpc.StatusCode.NOT_FOUND:
            return NotFoundError(metadata.get("kind", "resource"))
        case grpc.StatusCode.ALREADY_EXISTS:
            return AlreadyExistsError(message, reason, metadata=metadata)
        case grpc.StatusCode.FAILED_PRECONDITION:
            return FailedPreconditionError(message, reason, metadata=metadata)
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return LimitExceededError(message, reason, metadata.get("subject", ""), wait)
        case grpc.StatusCode.UNAVAILABLE:
            return UnavailableError(message, reason, wait or timedelta(seconds=1))
        case _:
            # A fault of the peer's own tells this caller's caller nothing.
            return UnavailableError("a service that is needed failed")


def _details(error: BulkheadError) -> Iterator[Any]:
    metadata = dict(error.metadata)
    if isinstance(error, LimitExceededError):
        metadata["subject"] = error.subject
    yield error_details_pb2.ErrorInfo(reason=error.reason.value, domain=DOMAIN, metadata=metadata)
    if isinstance(error, InvalidFieldError):
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=error.field, description=error.description
                )
            ]
        )
    if isinstance(error, LimitExceededError):
        yield error_details_pb2.QuotaFailure(
            violations=[
                error_details_pb2.QuotaFailure.Violation(
                    subject=error.subject, description=error.message
                )
            ]
        )
    if error.retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(error.retry_after)
        yield error_details_pb2.RetryInfo(retry_delay=delay)
