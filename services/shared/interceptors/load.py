"""Load shedding: what cannot be served soon is refused at once."""

from contextlib import asynccontextmanager

from services.shared.errors import Reason, UnavailableError
from services.shared.interceptors.call import Call, Entered
from services.shared.recording import Recording, observing


class LoadLimit:
    """Admits a number of calls at once. Health and reflection do not pass here."""

    def __init__(self, most: int, recording: Recording) -> None:
        self._most = most
        self._in_flight = 0
        if (meter := recording.meter()) is not None:
            meter.create_observable_up_down_counter(
                "bulkhead.rpc.server.active_calls",
                observing(lambda: [(self._in_flight, {})]),
                "{call}",
                "Calls that are served now.",
            )
            meter.create_observable_gauge(
                "bulkhead.rpc.server.most_active_calls",
                observing(lambda: [(self._most, {})]),
                "{call}",
                "Calls that may be served at once.",
            )

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
