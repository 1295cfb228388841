"""Which databases were asked for, and when, as far as this process knows."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from services.shared.ids import DeploymentId


class Uses:
    """Lets those who ask for a database and the one who ends it know of each other."""

    def __init__(self) -> None:
        self._noted: dict[DeploymentId, float] = {}
        self._ending: set[DeploymentId] = set()

    def note(self, deployment: DeploymentId) -> None:
        """Writes down that someone asks for the database now."""
        self._noted[deployment] = time.monotonic()

    def last(self, deployment: DeploymentId) -> float:
        """Returns when someone last asked for it, by the monotonic clock; 0 if nobody did."""
        return self._noted.get(deployment, 0.0)

    def is_ending(self, deployment: DeploymentId) -> bool:
        """Whether its server may be about to end: whoever asks now waits until that is over."""
        return deployment in self._ending

    @contextmanager
    def ending(self, deployment: DeploymentId) -> Iterator[None]:
        """Lets whoever asks inside the block wait."""
        self._ending.add(deployment)
        try:
            yield
        finally:
            self._ending.discard(deployment)

    def forget_all_but(self, deployments: frozenset[DeploymentId]) -> None:
        """Forgets those that are not among `deployments`."""
        self._noted = {one: when for one, when in self._noted.items() if one in deployments}
