"""New deployments whose database is a copy: of another's, or of what a backup holds."""

from services.provisioner import backup_store, store
from services.provisioner.backups import restorable
from services.provisioner.creation import Creation
from services.provisioner.domain import Deployment, Operation, Wanted
from services.provisioner.ports import Bearer
from services.provisioner.waking import usable
from services.shared.errors import NotFoundError
from services.shared.ids import BackupId, DeploymentId, TenantId
from services.shared.postgres import Database


class Branching:
    """Asks for such deployments; passwords, host, keys, secrets and bucket are their own."""

    def __init__(self, database: Database, creation: Creation) -> None:
        self._database = database
        self._creation = creation

    async def branch(
        self,
        tenant: TenantId,
        caller: Bearer,
        source_id: DeploymentId,
        request_id: str,
        name: str,
        *,
        mcp: bool,
    ) -> tuple[Deployment, Operation]:
        """Returns the new deployment, written down, and the operation that makes it.

        Idempotent by the request's id; see `Creation.create` for what else it raises.

        Raises:
            NotFoundError: the tenant has no such deployment to copy.
            FailedPreconditionError: it has no database, or is suspended.
            UnavailableError: it is not ready.
        """
        async with self._database.tenant(tenant) as connection:
            source = await store.get_deployment(connection, source_id)
        wanted = _wanted(source, request_id, name, mcp=mcp)
        earlier = await self._creation.earlier(tenant, wanted)
        if earlier is not None:
            return earlier
        usable(source)
        return await self._creation.create(tenant, caller, wanted)

    async def restore(
        self,
        tenant: TenantId,
        caller: Bearer,
        backup_id: BackupId,
        request_id: str,
        name: str,
        *,
        mcp: bool,
    ) -> tuple[Deployment, Operation]:
        """Does the same with what a backup holds.

        A deployment that is suspended is not to be had by way of its backups.

        Raises:
            NotFoundError: the tenant has no such backup.
            FailedPreconditionError: it could not be made, or its deployment is suspended.
            UnavailableError: it is being made.
        """
        async with self._database.tenant(tenant) as connection:
            backup = await backup_store.get(connection, backup_id)
            if backup is None:
                raise NotFoundError("backup")
            source = await store.get_deployment(connection, backup.deployment_id)
        wanted = _wanted(source, request_id, name, mcp=mcp, backup_id=backup_id)
        earlier = await self._creation.earlier(tenant, wanted)
        if earlier is not None:
            return earlier
        restorable(backup)
        usable(source)
        return await self._creation.create(tenant, caller, wanted)


def _wanted(
    source: Deployment | None,
    request_id: str,
    name: str,
    *,
    mcp: bool,
    backup_id: BackupId | None = None,
) -> Wanted:
    """Returns a wish with the quota and the patience of what is copied."""
    if source is None:
        raise NotFoundError("deployment")
    return Wanted(
        request_id=request_id,
        name=name,
        mcp=mcp,
        database=True,
        storage_bytes=source.storage_bytes,
        idle_timeout=source.idle_timeout,
        source_deployment_id=source.deployment_id,
        source_backup_id=backup_id,
    )
