"""Why nothing is vended, in the words that a caller is told."""

from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType

import structlog

from services.credentials.domain import ConnectionKind, StateReason
from services.shared.errors import (
    BulkheadError,
    FailedPreconditionError,
    PermissionDeniedError,
    Reason,
    UnavailableError,
)
from services.shared.ids import ConnectionId

# What no person has to allow anew: its owner gives another.
_GIVEN: Mapping[ConnectionKind, tuple[str, str]] = MappingProxyType(
    {
        ConnectionKind.STATIC_TOKEN: ("a new token", "--token-file"),
        ConnectionKind.API_KEY: ("a new API key", "--api-key-file"),
    }
)


def busy() -> UnavailableError:
    """Returns what is told to whoever would have to wait for a refresh for too long."""
    return away(timedelta(seconds=1), "the connection's token is being refreshed; try again")


def away(wait: timedelta, message: str = "the provider cannot be reached") -> UnavailableError:
    """Returns what is told of a provider that is to be asked again after `wait`."""
    return UnavailableError(message, Reason.PROVIDER_UNAVAILABLE, wait)


def not_active() -> BulkheadError:
    """Returns what is told of a connection that is not there yet, or not any more."""
    return FailedPreconditionError(
        "the connection is not active: nobody has allowed it yet, or it is being deleted",
        Reason.CONNECTION_NOT_ACTIVE,
    )


def suspended() -> BulkheadError:
    """Returns what a deployment is told that is suspended, whatever it asks for."""
    return FailedPreconditionError("the deployment is suspended", Reason.DEPLOYMENT_SUSPENDED)


def needs_reauthorization(
    reason: StateReason, kind: ConnectionKind, connection: ConnectionId
) -> BulkheadError:
    """Returns what is told of a connection whose grant is of no use any more."""
    missing, option = _GIVEN.get(kind, ("a new authorization", ""))
    how = f": bulkhead connection update {connection} {option}" if option else ""
    return FailedPreconditionError(
        f"the connection needs {missing} ({reason.value}){how}",
        Reason.CONNECTION_NEEDS_REAUTHORIZATION,
        metadata={"state_reason": reason.value},
    )


def beyond_ceiling() -> BulkheadError:
    """Returns what is told where no token can be had that keeps to the binding's ceiling."""
    return PermissionDeniedError(
        "the connection's token can do more than the binding allows, and cannot be had with less",
        Reason.SCOPE_CEILING,
    )


def ceiling_never_kept() -> BulkheadError:
    """Returns what is told of a ceiling on what cannot be had with less, and nobody knows."""
    return FailedPreconditionError(
        "nobody knows what a static token or an API key can do, and neither can be had with less:"
        " no ceiling can be kept, and nothing would be vended; bind it without one",
        Reason.SCOPE_CEILING,
    )


def unreadable(connection: ConnectionId, why: Exception) -> BulkheadError:
    """Returns what is told of a connection whose secrets do not open; the operator hears of it."""
    structlog.get_logger().error(
        "a connection cannot be read: it was changed, or its key is gone",
        connection_id=connection,
        why=str(why),
    )
    return FailedPreconditionError(
        "what is kept of the connection cannot be decrypted", Reason.CONNECTION_UNREADABLE
    )
