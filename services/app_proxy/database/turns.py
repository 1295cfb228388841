"""Whose turn it is: a deployment's results are made one after the other (P-38)."""

import asyncio
from weakref import WeakValueDictionary

from services.shared.ids import DeploymentId


class Turns:
    """One turn per deployment, so that none can take every turn of the event loop."""

    def __init__(self) -> None:
        self._turns: WeakValueDictionary[DeploymentId, asyncio.Lock] = WeakValueDictionary()

    def of(self, deployment_id: DeploymentId) -> asyncio.Lock:
        """Returns the deployment's turn; it exists for as long as somebody holds or awaits it."""
        return self._turns.setdefault(deployment_id, asyncio.Lock())
