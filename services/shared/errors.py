"""What can go wrong, in the words of the domain.

Services raise these; only `interceptors/errors.py` turns them into a status. Each knows its reason,
the name of a value of `bulkhead.common.v1.ErrorReason` without its prefix.
"""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum

# What a caller sent may stand in what it is told, and goes into headers: too long a header breaks
# the connection that others share.
_MOST_TOLD = 300


def _told(text: str) -> str:
    return text if len(text) <= _MOST_TOLD else f"{text[: _MOST_TOLD - 1]}…"


class Reason(StrEnum):
    """`bulkhead.common.v1.ErrorReason`; a test proves that the two are the same."""

    KEY_MISSING = "KEY_MISSING"
    KEY_INVALID = "KEY_INVALID"
    KEY_KIND_REFUSED = "KEY_KIND_REFUSED"
    SCOPE_MISSING = "SCOPE_MISSING"
    PEER_REFUSED = "PEER_REFUSED"
    FIELD_INVALID = "FIELD_INVALID"
    PAGE_TOKEN_INVALID = "PAGE_TOKEN_INVALID"  # noqa: S105 a reason, not a token
    RESOURCE_NOT_FOUND = "RESOURCE_NOT_FOUND"
    REQUEST_REPLAYED = "REQUEST_REPLAYED"
    HOST_TAKEN = "HOST_TAKEN"
    BURST_EXCEEDED = "BURST_EXCEEDED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    OVERLOADED = "OVERLOADED"
    DEPLOYMENT_LIMIT = "DEPLOYMENT_LIMIT"
    DEPLOYMENT_NOT_READY = "DEPLOYMENT_NOT_READY"
    RESOURCE_NOT_DECLARED = "RESOURCE_NOT_DECLARED"
    OPERATION_FAILED = "OPERATION_FAILED"
    KEY_ENDED = "KEY_ENDED"
    KEY_EXPIRES_SOONER = "KEY_EXPIRES_SOONER"
    DEPENDENCY_UNAVAILABLE = "DEPENDENCY_UNAVAILABLE"
    DEADLINE_TOO_SHORT = "DEADLINE_TOO_SHORT"
    AUDIT_UNAVAILABLE = "AUDIT_UNAVAILABLE"
    INTERNAL = "INTERNAL"
    BINDING_MISSING = "BINDING_MISSING"
    BINDING_EXPIRED = "BINDING_EXPIRED"
    BINDING_AMBIGUOUS = "BINDING_AMBIGUOUS"
    ALIAS_TAKEN = "ALIAS_TAKEN"
    CONNECTION_EXCLUSIVE = "CONNECTION_EXCLUSIVE"
    CONNECTION_NEEDS_REAUTHORIZATION = "CONNECTION_NEEDS_REAUTHORIZATION"
    CONNECTION_NOT_ACTIVE = "CONNECTION_NOT_ACTIVE"
    SCOPE_CEILING = "SCOPE_CEILING"
    PROVIDER_UNAVAILABLE = "PROVIDER_UNAVAILABLE"
    AUTHORIZATION_REFUSED = "AUTHORIZATION_REFUSED"
    CONNECTION_LIMIT = "CONNECTION_LIMIT"
    CONNECTION_UNREADABLE = "CONNECTION_UNREADABLE"
    CONNECTION_KIND = "CONNECTION_KIND"
    KEY_ENCRYPTION_KEY_IN_USE = "KEY_ENCRYPTION_KEY_IN_USE"
    KEYRING_READ_ONLY = "KEYRING_READ_ONLY"
    DEPLOYMENT_SUSPENDED = "DEPLOYMENT_SUSPENDED"
    OPERATION_RUNNING = "OPERATION_RUNNING"
    RESOURCE_LIMIT = "RESOURCE_LIMIT"
    SHOWN_BEFORE = "SHOWN_BEFORE"
    RESOURCE_LOST = "RESOURCE_LOST"
    SECRET_UNREADABLE = "SECRET_UNREADABLE"  # noqa: S105 a reason, not a secret
    NOT_SUSPENDED = "NOT_SUSPENDED"
    TENANT_DELETING = "TENANT_DELETING"


class BulkheadError(Exception):
    """A refusal with a reason. `message` is for the caller: it names no internals."""

    def __init__(
        self,
        message: str,
        reason: Reason,
        *,
        retry_after: timedelta | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = _told(message)
        self.reason = reason
        self.retry_after = retry_after
        self.metadata = {name: _told(value) for name, value in (metadata or {}).items()}


class InvalidFieldError(BulkheadError):
    """A field of the request cannot be used as it is."""

    def __init__(self, field: str, description: str, reason: Reason = Reason.FIELD_INVALID) -> None:
        super().__init__(f"{field}: {description}", reason)
        self.field = _told(field)
        self.description = _told(description)


class UnauthenticatedError(BulkheadError):
    """No key, or none that is valid here."""

    def __init__(self, reason: Reason = Reason.KEY_INVALID) -> None:
        message = (
            "present a key as `authorization: Bearer …`"
            if reason is Reason.KEY_MISSING
            else "the key is not valid"
        )
        super().__init__(message, reason)


class PermissionDeniedError(BulkheadError):
    """The key is valid but does not open this."""


class NotFoundError(BulkheadError):
    """Unknown, or another tenant's: one answer for both (P-41)."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"no such {kind}", Reason.RESOURCE_NOT_FOUND, metadata={"kind": kind})


class AlreadyExistsError(BulkheadError):
    """What was asked for is taken, or was done before with other content."""


class FailedPreconditionError(BulkheadError):
    """It cannot be done in the present state, and repeating it will not help."""


class LimitExceededError(BulkheadError):
    """A limit of the caller's own is reached; `subject` says which."""

    def __init__(
        self, message: str, reason: Reason, subject: str, retry_after: timedelta | None = None
    ) -> None:
        super().__init__(message, reason, retry_after=retry_after)
        self.subject = subject


class UnavailableError(BulkheadError):
    """Something that is needed is away; nothing was done, or it is safe to repeat."""

    def __init__(
        self,
        message: str,
        reason: Reason = Reason.DEPENDENCY_UNAVAILABLE,
        retry_after: timedelta = timedelta(seconds=1),
    ) -> None:
        super().__init__(message, reason, retry_after=retry_after)


class DeadlineTooShortError(BulkheadError):
    """The caller will have gone before the work is done."""

    def __init__(self) -> None:
        super().__init__("the deadline leaves no time for this", Reason.DEADLINE_TOO_SHORT)
