"""The secrets of deployments: kept for the deployment itself, and shown to nobody else (P-09)."""

from collections.abc import Sequence

from services.provisioner import operation_store, resource_store, store
from services.provisioner import secret_store as secrets
from services.provisioner.domain import (
    Deployment,
    DeploymentState,
    OperationKind,
    ResourceKind,
    ResourceState,
)
from services.provisioner.secret_rules import Secret, WantedSecret, unreadable
from services.shared.crypto import TenantCipher, UnreadableError
from services.shared.data_keys import DataKeys
from services.shared.errors import (
    FailedPreconditionError,
    LimitExceededError,
    NotFoundError,
    Reason,
)
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection, Database


class Secrets:
    """Keeps secrets, names them, deletes them."""

    def __init__(self, database: Database, data_keys: DataKeys, *, per_deployment: int) -> None:
        self._database = database
        self._data_keys = data_keys
        self._most = per_deployment

    async def put(
        self, tenant: TenantId, deployment_id: DeploymentId, wanted: WantedSecret
    ) -> Secret:
        """Keeps a secret, in place of one of the same name; returns it without its value.

        Raises:
            NotFoundError: the tenant has no such deployment, or it is deleted.
            FailedPreconditionError: it is being deleted, or the tenant's data key is unreadable.
            LimitExceededError: it has as many secrets as it may have.
            UnavailableError: the database, or who holds the key-encryption keys, is away.
        """
        cipher = await cipher_of(self._data_keys, tenant)
        sealed = cipher.seal(secrets.secret_place(deployment_id, wanted.name), wanted.value)
        async with self._database.tenant(tenant) as connection:
            await secrets.hold_off_deletion(connection, tenant)
            deployment = await held(connection, deployment_id)
            await self._check_limit(connection, deployment_id, wanted.name)
            kept = await secrets.put_secret(
                connection, deployment, wanted.name, sealed, generated=wanted.generated
            )
            await declare(connection, deployment)
        return kept

    async def list(self, tenant: TenantId, deployment_id: DeploymentId) -> Sequence[Secret]:
        """Returns the deployment's secrets without their values, in the order of their names.

        Raises:
            NotFoundError: the tenant has no such deployment, or it is deleted.
        """
        async with self._database.tenant(tenant) as connection:
            existing(await store.get_deployment(connection, deployment_id))
            return await secrets.list_secrets(connection, deployment_id)

    async def delete(self, tenant: TenantId, deployment_id: DeploymentId, name: str) -> None:
        """Returns when the deployment has no secret of that name.

        Raises:
            NotFoundError: the tenant has no such deployment, or it is deleted.
        """
        async with self._database.tenant(tenant) as connection:
            existing(await store.get_deployment(connection, deployment_id))
            await secrets.delete_secret(connection, deployment_id, name)

    async def _check_limit(
        self, connection: Connection, deployment_id: DeploymentId, name: str
    ) -> None:
        if await secrets.count_others(connection, deployment_id, name) >= self._most:
            raise LimitExceededError(
                f"at most {self._most} secrets are allowed", Reason.RESOURCE_LIMIT, "secrets"
            )


async def cipher_of(data_keys: DataKeys, tenant: TenantId) -> TenantCipher:
    """Returns the tenant's cipher.

    Raises:
        FailedPreconditionError: its data key cannot be unwrapped.
        UnavailableError: the database, or who holds the key-encryption keys, is away.
    """
    try:
        return await data_keys.cipher(tenant)
    except UnreadableError as error:
        raise unreadable() from error


async def held(connection: Connection, deployment_id: DeploymentId) -> Deployment:
    """Returns the deployment, whose deletion cannot begin before the transaction has ended.

    Raises:
        NotFoundError: the tenant has no such deployment, or it is deleted.
        FailedPreconditionError: it is being deleted.
    """
    found = existing(await store.get_deployment(connection, deployment_id, lock=True))
    if found.state is DeploymentState.DELETING:
        operation = await operation_store.of_kind(connection, deployment_id, OperationKind.DELETE)
        raise FailedPreconditionError(
            "the deployment is being deleted",
            Reason.OPERATION_RUNNING,
            metadata={"operation_id": "" if operation is None else operation.operation_id},
        )
    return found


def existing(deployment: Deployment | None) -> Deployment:
    """Returns the deployment.

    Raises:
        NotFoundError: there is none, or none any more.
    """
    if deployment is None or deployment.state is DeploymentState.DELETED:
        raise NotFoundError("deployment")
    return deployment


async def declare(connection: Connection, deployment: Deployment) -> None:
    """Writes down that the deployment has secrets, so that its deletion has them to destroy."""
    await resource_store.insert(connection, deployment, [ResourceKind.SECRETS])
    await resource_store.set_state(
        connection, deployment.deployment_id, ResourceKind.SECRETS, ResourceState.READY
    )
