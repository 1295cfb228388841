"""Which worker does the work of a subject."""

from collections.abc import Mapping
from datetime import timedelta

from services.provisioner.reconciler import Reconciler
from services.shared.ids import DeploymentId


class Dispatch:
    """Passes each subject to the one who knows its kind."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler

    async def reconcile(self, subject: str, carrier: Mapping[str, str]) -> timedelta | None:
        """Does what is to be done for the subject now, as part of the trace in `carrier`.

        Returns how long to wait before looking again; None when nothing is left to do.
        """
        return await self._reconciler.reconcile(DeploymentId(subject), carrier)
