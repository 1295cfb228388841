"""New passwords for a deployment's database: written down at once, given by the reconciler."""

from datetime import timedelta

from services.provisioner import operation_store, store
from services.provisioner.domain import Deployment, Operation, OperationKind, Step
from services.provisioner.operations import Operations, check_idle
from services.provisioner.plans.rotating import GENERATION, OVERLAP_SECONDS
from services.provisioner.ports import Bearer, Registry
from services.provisioner.waking import usable
from services.shared.errors import AlreadyExistsError, NotFoundError, Reason
from services.shared.ids import DeploymentId, TenantId
from services.shared.postgres import Connection, Database


class Rotation:
    """Begins rotations, one at a time of a database."""

    def __init__(self, database: Database, operations: Operations, registry: Registry) -> None:
        self._database = database
        self._operations = operations
        self._registry = registry

    async def rotate(
        self,
        tenant: TenantId,
        caller: Bearer,
        deployment_id: DeploymentId,
        request_id: str,
        overlap: timedelta,
    ) -> Operation:
        """Returns the operation, done when the passwords before open nothing any more.

        Idempotent by the request's id.

        Raises:
            NotFoundError: the tenant has no such deployment.
            AlreadyExistsError: the id was used before for something else.
            FailedPreconditionError: it has no database, is suspended, or something else is being
                done with it.
        """
        parameters = {OVERLAP_SECONDS: overlap.total_seconds()}
        async with self._database.tenant(tenant) as connection:
            # Else the same request, at once from elsewhere, could come in between the two looks.
            await store.lock_tenant(connection, tenant)
            deployment = await store.get_deployment(connection, deployment_id)
            earlier = await _earlier(connection, tenant, deployment_id, request_id, parameters)
            if earlier is not None:
                return earlier
            await _check_can_be(connection, deployment)
        job = await self._registry.delegate(caller, f"rotate {deployment_id}")
        async with self._database.tenant(tenant) as connection:
            await store.lock_tenant(connection, tenant)
            deployment = await store.get_deployment(connection, deployment_id, lock=True)
            earlier = await _earlier(connection, tenant, deployment_id, request_id, parameters)
            if earlier is not None:
                return earlier
            found = await _check_can_be(connection, deployment)
            return await self._operations.begin(
                connection,
                found,
                OperationKind.ROTATE,
                Step.ISSUING,
                job,
                request_id=request_id,
                parameters={**parameters, GENERATION: found.generation + 1},
            )


async def _earlier(
    connection: Connection,
    tenant: TenantId,
    deployment_id: DeploymentId,
    request_id: str,
    parameters: dict[str, float],
) -> Operation | None:
    found = await operation_store.of_request(connection, tenant, OperationKind.ROTATE, request_id)
    if found is None:
        return None
    same = found.parameters[OVERLAP_SECONDS] == parameters[OVERLAP_SECONDS]
    if found.deployment_id != deployment_id or not same:
        raise AlreadyExistsError(
            "the request_id was used before for another rotation", Reason.REQUEST_REPLAYED
        )
    return found


async def _check_can_be(connection: Connection, deployment: Deployment | None) -> Deployment:
    if deployment is None:
        raise NotFoundError("deployment")
    await check_idle(connection, deployment.deployment_id, waiting=True)
    return usable(deployment)
