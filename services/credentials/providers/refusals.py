"""What a caller is told when a provider did not give what it was asked for."""

from datetime import timedelta

from services.credentials.domain import GrantRefusedError, ProviderAwayError, ProviderError
from services.shared.errors import (
    BulkheadError,
    FailedPreconditionError,
    Reason,
    UnavailableError,
)

_AGAIN = timedelta(seconds=1)


def told(title: str, error: ProviderError, advice: str = "") -> BulkheadError:
    """Returns the refusal for `error` of the provider called `title`, with `advice` at its end."""
    if isinstance(error, GrantRefusedError):
        return FailedPreconditionError(
            f"{title} refused: {error.provider_error}",
            Reason.AUTHORIZATION_REFUSED,
            metadata={"provider_error": error.provider_error},
        )
    wait = error.retry_after if isinstance(error, ProviderAwayError) else None
    return UnavailableError(
        f"{title} gave no answer that is of use{advice}",
        Reason.PROVIDER_UNAVAILABLE,
        wait or _AGAIN,
    )
