"""All that a deployment's own program needs to run: its secrets, and the ways into what is its own.

Either all of it or nothing: a program that starts with half of its environment does harm.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from services.provisioner import secret_store as secrets
from services.provisioner import store
from services.provisioner.databases import DatabaseService
from services.provisioner.domain import DatabaseRole, Deployment, check_ready
from services.provisioner.own_buckets import OwnBuckets
from services.provisioner.secret_rules import OWN_PREFIX, Administrator, unreadable
from services.provisioner.secret_store import SealedSecret, secret_place
from services.provisioner.secrets import existing
from services.shared.crypto import UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Database

_URLS: Final[Mapping[DatabaseRole, str]] = MappingProxyType(
    {DatabaseRole.WRITER: "DATABASE_URL", DatabaseRole.READER: "DATABASE_READER_URL"}
)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What the rows say, at one moment."""

    deployment: Deployment
    secrets: Sequence[SealedSecret]
    administrator: Administrator | None


class Environments:
    """Puts environments together."""

    def __init__(
        self,
        database: Database,
        data_keys: DataKeys,
        databases: DatabaseService,
        buckets: OwnBuckets,
    ) -> None:
        self._database = database
        self._data_keys = data_keys
        self._databases = databases
        self._buckets = buckets

    async def get(
        self, tenant: TenantId, deployment_id: DeploymentId, roles: Iterable[DatabaseRole]
    ) -> Mapping[str, str]:
        """Returns the deployment's environment, with its database's URLs for `roles`.

        What is ours is laid over what is the tenant's.

        Raises:
            NotFoundError: the tenant has no such deployment, or it is deleted.
            FailedPreconditionError: it is suspended, could not be made, or something of it cannot
                be decrypted or is lost.
            UnavailableError: it is not ready, or something that is needed is away.
        """
        kept = await self._read(tenant, deployment_id)
        own = {
            "DEPLOYMENT_ID": kept.deployment.deployment_id,
            "HOST": kept.deployment.host,
            **_administrator(kept.administrator),
            **await self._database_urls(kept.deployment, roles),
            **await self._bucket(kept.deployment),
        }
        ours = {f"{OWN_PREFIX}{name}": value for name, value in own.items()}
        return await self._opened(kept) | ours

    async def _read(self, tenant: TenantId, deployment_id: DeploymentId) -> _Kept:
        async with self._database.tenant(tenant) as connection:
            deployment = existing(await store.get_deployment(connection, deployment_id))
            check_ready(deployment)
            return _Kept(
                deployment,
                await secrets.sealed_secrets(connection, deployment_id),
                await secrets.get_administrator(connection, deployment_id),
            )

    async def _opened(self, kept: _Kept) -> dict[str, str]:
        """Returns the tenant's own secrets by name."""
        if not kept.secrets:
            return {}
        deployment = kept.deployment
        try:
            cipher = await self._data_keys.existing(deployment.tenant_id)
            if cipher is None:
                raise unreadable()
            return {
                each.name: cipher.open(
                    secret_place(deployment.deployment_id, each.name), each.sealed
                )
                for each in kept.secrets
            }
        except UnreadableError as error:
            raise unreadable() from error

    async def _database_urls(
        self, deployment: Deployment, roles: Iterable[DatabaseRole]
    ) -> dict[str, str]:
        if not deployment.database:
            return {}
        found = {
            role: await self._databases.connection(
                deployment.tenant_id, deployment.deployment_id, role, in_mesh=False
            )
            for role in roles
        }
        return {_URLS[role]: connection.uri for role, connection in found.items()}

    async def _bucket(self, deployment: Deployment) -> dict[str, str]:
        if not deployment.bucket:
            return {}
        found = await self._buckets.access(deployment)
        return {
            "BUCKET_ENDPOINT": found.endpoint,
            "BUCKET_REGION": found.region,
            "BUCKET_NAME": found.bucket,
            "BUCKET_ACCESS_KEY": found.access_key,
            "BUCKET_SECRET_KEY": found.secret_key,
        }


def _administrator(known: Administrator | None) -> dict[str, str]:
    if known is None:
        return {}
    return {"ADMIN_USER": known.user, "ADMIN_PASSWORD_HASH": known.password_hash}
