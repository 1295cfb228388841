"""Which worker does the work of a subject."""

from collections.abc import Mapping
from datetime import timedelta

from services.provisioner.reconciler import Reconciler
from services.provisioner.tenant_deleting import TenantDeleting
from services.shared.ids import DeploymentId, TenantId

# What a tenant's id begins with.
_TENANT = "ten_"


class Dispatch:
    """Passes each subject to the one who knows its kind."""

    def __init__(self, reconciler: Reconciler, deleting_tenants: TenantDeleting) -> None:
        self._reconciler = reconciler
        self._deleting_tenants = deleting_tenants

    async def reconcile(self, subject: str, carrier: Mapping[str, str]) -> timedelta | None:
        """Does what is to be done for the subject now, as part of the trace in `carrier`.

        Returns how long to wait before looking again; None when nothing is left to do.
        """
        if subject.startswith(_TENANT):
            return await self._deleting_tenants.reconcile(TenantId(subject), carrier)
        return await self._reconciler.reconcile(DeploymentId(subject), carrier)
