"""What a support key may do, and for how long."""

from collections.abc import Set as AbstractSet
from datetime import timedelta

from services.shared.errors import InvalidFieldError

LEAST_LIFETIME = timedelta(seconds=1)
MOST_LIFETIME = timedelta(hours=1)
READ_SCOPES = frozenset(
    {
        "audit:read",
        "connections:read",
        "deployments:read",
        "keys:read",
        "tenants:read",
        "usage:read",
    }
)
# Never keys:write, tenants:write, deployments:write or connections:write, with which it would make
# or destroy what outlives it; nor db:read, db:write or tokens:read, since the password or the token
# that they open works on when the key does not.
SUPPORT_SCOPES = READ_SCOPES | {"plan:write"}


def support_scopes(asked: AbstractSet[str]) -> frozenset[str]:
    """Returns the scopes of a support key; none asked for: everything that only reads.

    Raises:
        InvalidFieldError: a scope that no support key can have.
    """
    refused = sorted(asked - SUPPORT_SCOPES)
    if refused:
        known = ", ".join(sorted(SUPPORT_SCOPES))
        raise InvalidFieldError("scopes", f"{refused[0]!r} is not one of: {known}")
    return frozenset(asked) or READ_SCOPES
