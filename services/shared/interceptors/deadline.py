"""The caller's deadline: remembered for the calls made on its behalf, refused when hopeless."""

from contextlib import asynccontextmanager

from services.shared.deadline import set_time_remaining
from services.shared.errors import DeadlineTooShortError
from services.shared.interceptors.call import Call, Entered

# Kept back for the answer's way home; with less than this nothing is begun.
_TRIM_SECONDS = 0.005


@asynccontextmanager
async def deadline(call: Call) -> Entered:
    """Sets the time that remains, a little less than the caller's own."""
    remaining = call.context.time_remaining()
    # No deadline comes as None, or as the remaining life of the universe.
    if remaining is None or remaining > _FOREVER_SECONDS:
        set_time_remaining(None)
    elif remaining <= _TRIM_SECONDS:
        raise DeadlineTooShortError
    else:
        set_time_remaining(remaining - _TRIM_SECONDS)
    yield


_FOREVER_SECONDS = 365 * 24 * 3600.0
