"""Load shedding: what cannot be served soon is refused at once."""

from contextlib import asynccontextmanager

from services.shared.errors import Reason, UnavailableError
from services.shared.interceptors.call import Call, Entered


class LoadLimit:
    """Admits a number of calls at once. Health and reflection do not pass here."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_flight = 0

    @asynccontextmanager
    async def __call__(self, _call: Call) -> Entered:
        """Admits the call, or refuses it before anything was done."""
        if self._in_flight >= self._most:
            raise UnavailableError("too many calls are in flight", Reason.OVERLOADED)
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1
