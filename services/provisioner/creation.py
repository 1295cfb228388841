"""Creating a deployment: written down at once, made by the reconciler."""

import asyncio

import structlog

from services.provisioner import operation_store, resource_store, store
from services.provisioner.administrators import Administrators, Prepared
from services.provisioner.domain import (
    LOCK_PATIENCE,
    Deployment,
    Operation,
    OperationKind,
    Step,
    Wanted,
    new_host,
)
from services.provisioner.operations import Operations
from services.provisioner.own_buckets import OwnBuckets
from services.provisioner.plans.making import Making
from services.provisioner.ports import Bearer, Locks, Registry
from services.provisioner.work import Boundary, Moment, Work
from services.shared.errors import (
    AlreadyExistsError,
    BulkheadError,
    LimitExceededError,
    NotFoundError,
    Reason,
)
from services.shared.ids import (
    DeploymentId,
    TenantId,
    new_deployment_id,
)
from services.shared.postgres import Connection, Database

# How long the call itself tries to take the first steps; the reconciler takes them in any case.
_FIRST_STEPS_SECONDS = 3.0


class Creation:
    """Writes deployments down, with what it takes to make them."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        operations: Operations,
        registry: Registry,
        making: Making,
        administrators: Administrators,
        buckets: OwnBuckets,
        boundary: Boundary,
        *,
        domain: str,
        deployments_per_tenant: int,
    ) -> None:
        self._database = database
        self._locks = locks
        self._operations = operations
        self._registry = registry
        self._making = making
        self._administrators = administrators
        self._buckets = buckets
        self._boundary = boundary
        self._domain = domain
        self._most = deployments_per_tenant

    async def create(
        self, tenant: TenantId, caller: Bearer, wanted: Wanted
    ) -> tuple[Deployment, Operation]:
        """Returns the deployment, written down, and the operation that makes it.

        Idempotent by the request's id.

        Raises:
            AlreadyExistsError: the id was used before for something else.
            LimitExceededError: the tenant has as many deployments as it may have.
            FailedPreconditionError: a bucket is wanted where there is no object storage, or the
                tenant's data key cannot be unwrapped.
            UnavailableError: auth or the database is away; nothing was written.
        """
        earlier = await self.earlier(tenant, wanted)
        if earlier is not None:
            return earlier
        if wanted.bucket:
            self._buckets.check_offered()
        deployment_id = new_deployment_id()
        job = await self._registry.delegate(caller, f"create {deployment_id}")
        administrator = await self._prepared(tenant, deployment_id, wanted)
        # Held until the first steps are over, so that the worker's last step cannot come before.
        async with self._locks.hold(deployment_id, LOCK_PATIENCE, caller=tenant):
            written = await self._write(tenant, wanted, deployment_id, job, administrator)
            if written is not None:
                await self._take_first_steps(Work(*written, job))
                return written
        # Another call with the same request_id was faster.
        earlier = await self.earlier(tenant, wanted)
        if earlier is None:
            raise NotFoundError("deployment")
        return earlier

    async def earlier(
        self, tenant: TenantId, wanted: Wanted
    ) -> tuple[Deployment, Operation] | None:
        """Returns what an earlier request of the same id has made; None when there was none.

        Raises:
            AlreadyExistsError: the id was used before for something else.
        """
        async with self._database.tenant(tenant) as connection:
            found = await store.deployment_of_request(connection, tenant, wanted.request_id)
            if found is None:
                return None
            if not wanted.was_met_by(found):
                raise AlreadyExistsError(
                    "the request_id was used before for another deployment",
                    Reason.REQUEST_REPLAYED,
                )
            operation = await operation_store.of_kind(
                connection, found.deployment_id, OperationKind.CREATE
            )
        if operation is None:
            raise NotFoundError("operation")
        return found, operation

    async def _prepared(
        self, tenant: TenantId, deployment_id: DeploymentId, wanted: Wanted
    ) -> Prepared | None:
        """Returns the first administrator, if one is wanted: what it takes is not for a lock."""
        if not wanted.bootstrap_admin:
            return None
        return await self._administrators.prepare(tenant, deployment_id)

    async def _write(
        self,
        tenant: TenantId,
        wanted: Wanted,
        deployment_id: DeploymentId,
        job: Bearer,
        administrator: Prepared | None,
    ) -> tuple[Deployment, Operation] | None:
        """Writes deployment, operation and queue entry at once; None when another call did."""
        async with self._database.tenant(tenant) as connection:
            await store.lock_tenant(connection, tenant)
            if await store.deployment_of_request(connection, tenant, wanted.request_id):
                return None
            await self._check_limit(connection, tenant)
            host = new_host(wanted.name, self._domain)
            deployment = await store.insert_deployment(
                connection, tenant, deployment_id, host, wanted
            )
            await resource_store.insert(connection, deployment, deployment.declared)
            if administrator is not None:
                await administrator.keep(connection, deployment)
            operation = await self._operations.begin(
                connection, deployment, OperationKind.CREATE, Step.REGISTERING, job
            )
        return deployment, operation

    async def _check_limit(self, connection: Connection, tenant: TenantId) -> None:
        if await store.count_deployments(connection, tenant) >= self._most:
            raise LimitExceededError(
                f"at most {self._most} deployments are allowed",
                Reason.DEPLOYMENT_LIMIT,
                "deployments",
            )

    async def _take_first_steps(self, work: Work) -> None:
        """Lets keys be issued, and the host answer 503, as soon as the call returns, if it can."""
        try:
            async with asyncio.timeout(_FIRST_STEPS_SECONDS):
                for step, action in self._making.first_steps():
                    await self._boundary.reached(OperationKind.CREATE, step, Moment.BEFORE)
                    await action(work)
                    await self._boundary.reached(OperationKind.CREATE, step, Moment.AFTER)
        except (BulkheadError, TimeoutError) as error:
            structlog.get_logger().warning(
                "first steps left to the reconciler",
                operation_id=work.operation.operation_id,
                error=type(error).__name__,
            )
