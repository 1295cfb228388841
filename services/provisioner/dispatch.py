"""Which worker does the work of a subject, and when it is its turn."""

from collections.abc import Mapping
from datetime import timedelta

from services.provisioner import store
from services.provisioner.reconciler import Reconciler
from services.provisioner.tenant_deleting import TenantDeleting
from services.shared.errors import UnavailableError
from services.shared.ids import DeploymentId, TenantId
from services.shared.places import Places
from services.shared.postgres import Database

# What a tenant's id begins with.
_TENANT = "ten_"
_AGAIN = timedelta(seconds=0.5)


class Dispatch:
    """Passes each subject to the one who knows its kind; one tenant has half of the turns (P-38).

    Everything a tenant asked for may be long: a copy of much, a server that does not start.
    """

    def __init__(
        self,
        database: Database,
        reconciler: Reconciler,
        deleting_tenants: TenantDeleting,
        at_once: int,
    ) -> None:
        self._database = database
        self._reconciler = reconciler
        self._deleting_tenants = deleting_tenants
        self._places = Places(at_once)
        self._waiting: set[str] = set()

    async def reconcile(self, subject: str, carrier: Mapping[str, str]) -> timedelta | None:
        """Does what is to be done for the subject now, as part of the trace in `carrier`.

        Returns how long to wait before looking again; None when nothing is left to do.
        """
        if subject in self._waiting:
            # Whoever waits looks at what stands in the rows then.
            return None
        self._waiting.add(subject)
        try:
            tenant = await self._tenant(subject)
            if tenant is None:
                return None
            async with self._places.take(tenant):
                self._waiting.discard(subject)
                return await self._reconcile(subject, carrier)
        except UnavailableError:
            return _AGAIN
        finally:
            self._waiting.discard(subject)

    async def _tenant(self, subject: str) -> TenantId | None:
        """Returns whose turn it takes; None: there is no such deployment."""
        if subject.startswith(_TENANT):
            return TenantId(subject)
        async with self._database.service() as connection:
            deployment = await store.get_deployment(connection, DeploymentId(subject))
        return None if deployment is None else deployment.tenant_id

    async def _reconcile(self, subject: str, carrier: Mapping[str, str]) -> timedelta | None:
        if subject.startswith(_TENANT):
            return await self._deleting_tenants.reconcile(TenantId(subject), carrier)
        return await self._reconciler.reconcile(DeploymentId(subject), carrier)
