"""The job that deletes a tenant, from its tombstone to its certificate (P-39)."""

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind

from services.provisioner import certificate_store, deletion_store, tombstone_store
from services.provisioner.certificate_documents import moment, of_resource, of_tenant
from services.provisioner.deletion_ports import (
    Forgetting,
    Signer,
    TenantCounters,
    TenantKeys,
    TenantLoans,
    TenantRoutes,
)
from services.provisioner.deletion_store import Child, Ending
from services.provisioner.domain import (
    LOCK_PATIENCE,
    OperationKind,
    ResourceKind,
    Step,
    retry_delay,
)
from services.provisioner.master_secret import MasterSecret
from services.provisioner.operations import Operations
from services.provisioner.plans.deleting import OPENED_BY_KEYS, StillThereError
from services.provisioner.ports import Bearer, Locks, Queue
from services.provisioner.tombstone_store import Due, Tombstone
from services.provisioner.work import LEFT_TO_OTHERS, Boundary, Moment, NotYetError
from services.shared.errors import BulkheadError, UnavailableError
from services.shared.ids import TenantId
from services.shared.postgres import Database
from services.shared.recording import SCOPE, fail, incoming

# Whoever holds the lock for longer is at it.
_LOCK_PATIENCE: Final = timedelta(seconds=2)
# How long it is waited for deployments before it is looked again: longer, the longer it takes.
_SOONEST, _LATEST = timedelta(seconds=0.2), timedelta(seconds=10)
_PART_OF_AGE: Final = 10


@dataclass(frozen=True, slots=True)
class TenantServices:
    """Who else keeps something of tenants."""

    keys: TenantKeys
    routes: TenantRoutes
    loans: TenantLoans
    counters: TenantCounters


@dataclass(frozen=True, slots=True)
class Job:
    """A tenant's deletion under way, and the key it acts with."""

    tombstone: Tombstone
    bearer: Bearer
    now: datetime

    @property
    def tenant(self) -> TenantId:
        """Who is deleted."""
        return self.tombstone.tenant_id


# Returns what it found out for the certificate.
_Action = Callable[[Job], Awaitable[Mapping[str, Any]]]


class TenantDeleting:
    """Goes on with the deletion of tenants until nothing is left; it is never given up."""

    def __init__(
        self,
        database: Database,
        locks: Locks,
        queue: Queue,
        services: TenantServices,
        operations: Operations,
        secret: MasterSecret,
        signer: Signer,
        boundary: Boundary,
        *,
        issuer: str,
        forgetting: Sequence[Forgetting],
    ) -> None:
        self._database = database
        self._locks = locks
        self._queue = queue
        self._services = services
        self._operations = operations
        self._secret = secret
        self._signer = signer
        self._boundary = boundary
        self._issuer = issuer
        # What is remembered of tenants here, in memory.
        self._forgetting = forgetting

    async def cut_off(self, tenant: TenantId) -> None:
        """Returns when no key, session or route of the tenant is alive; the job has its tombstone.

        Raises:
            BulkheadError: something may be; the job goes on trying.
        """
        async with self._locks.hold(tenant, LOCK_PATIENCE):
            due = await self._due(tenant)
            if due is None or due.tombstone.step is not Step.CUTTING_OFF:
                return
            await self._take(await self._job(due), Step.CUTTING_OFF, self._cut_off)
            await self._enter(tenant, Step.DELETING_DEPLOYMENTS)

    async def reconcile(self, tenant: TenantId, carrier: Mapping[str, str]) -> timedelta | None:
        """Does what is to be done for the tenant's deletion now; see `dispatch.Dispatch`."""
        with trace.get_tracer(SCOPE).start_as_current_span(
            "delete tenant",
            context=incoming(carrier) or Context(),
            kind=SpanKind.CONSUMER,
            attributes={"bulkhead.tenant_id": tenant},
            record_exception=False,
            set_status_on_exception=False,
        ):
            try:
                async with self._locks.hold(tenant, _LOCK_PATIENCE):
                    return await self._look(tenant)
            except UnavailableError:
                # The lock is held, or our own database is away: nothing could be written down.
                return timedelta(seconds=random.uniform(0.1, 0.5))  # noqa: S311 no secret

    async def _look(self, tenant: TenantId) -> timedelta | None:
        due = await self._due(tenant)
        if due is None:
            return None
        if due.wait or not due.tombstone.step.is_known:
            return due.wait or LEFT_TO_OTHERS
        step = due.tombstone.step
        try:
            job = await self._job(due)
            for step, action in self._rest(due.tombstone.step):
                await self._enter(tenant, step)
                await self._take(job, step, action)
                if step is Step.CUTTING_OFF:
                    # Whoever called waits for the lock to learn of this.
                    await self._enter(tenant, Step.DELETING_DEPLOYMENTS)
                    return timedelta(0)
        except NotYetError as wait:
            return await self._postpone(tenant, wait.delay)
        except Exception as error:  # noqa: BLE001 whatever it is, the deletion goes on
            return await self._failed(due.tombstone, step, error)
        return None

    def _rest(self, begin: Step) -> Sequence[tuple[Step, _Action]]:
        plan: Sequence[tuple[Step, _Action]] = (
            (Step.CUTTING_OFF, self._cut_off),
            (Step.DELETING_DEPLOYMENTS, self._await_deployments),
            (Step.ERASING_LOANS, self._erase_loans),
            (Step.ERASING_COUNTERS, self._erase_counters),
            (Step.ERASING_OWN, self._erase_own),
            (Step.ERASING_KEYS, self._erase_keys),
            (Step.CERTIFYING, self._certify),
        )
        return plan[[step for step, _ in plan].index(begin) :]

    async def _take(self, job: Job, step: Step, action: _Action) -> None:
        kind = OperationKind.DELETE_TENANT
        await self._boundary.reached(kind, step, Moment.BEFORE)
        evidence = await action(job)
        async with self._database.service() as connection:
            await tombstone_store.keep(connection, job.tenant, evidence)
        await self._boundary.reached(kind, step, Moment.AFTER)

    async def _cut_off(self, job: Job) -> Mapping[str, Any]:
        """Ends keys, sessions and routes; what keys alone open is out of reach with them."""
        closing = await self._services.keys.close(job.bearer)
        routes = await self._services.routes.erase(job.bearer)
        # From here on no key but the job's own gives another: one of a closed tenant lives longer.
        renewed = Job(job.tombstone, await self._renewed(job.tombstone, job.bearer), job.now)
        kinds = (*OPENED_BY_KEYS, ResourceKind.ROUTE)
        async with self._database.service() as connection:
            children = await deletion_store.children(connection, job.tenant)
            await deletion_store.give_keys(connection, [self._given(c, renewed) for c in children])
            await deletion_store.revoke_access(connection, job.tenant, kinds)
            now = await certificate_store.now(connection)
        return {
            "cut_off_at": moment(now),
            "closing": closing,
            "services": {"app_proxy": routes},
        }

    async def _await_deployments(self, job: Job) -> Mapping[str, Any]:
        """Waits until every deployment is deleted by its own operation; revives those that failed.

        Raises:
            NotYetError: one is not.
        """
        async with self._database.service() as connection:
            failed = await deletion_store.children(connection, job.tenant, failed=True)
            if failed:
                await deletion_store.give_keys(connection, [self._given(c, job) for c in failed])
                await self._queue.enqueue_all(connection, [each.deployment_id for each in failed])
            if await deletion_store.children(connection, job.tenant):
                age = (job.now - job.tombstone.request_time) / _PART_OF_AGE
                raise NotYetError(min(max(age, _SOONEST), _LATEST))
            resources, before = await deletion_store.resources_of_tenant(
                connection, job.tenant, job.tombstone.request_time
            )
        return {
            "resources": [of_resource(each) for each in resources],
            "deployments_deleted_before": before,
        }

    def _given(self, child: Child, job: Job) -> Ending:
        if child.operation_id is None:
            raise LookupError("a deployment that goes has an operation")
        key = self._operations.sealed(child.operation_id, job.bearer)
        return Ending(child.deployment_id, child.operation_id, key, b"")

    async def _erase_loans(self, job: Job) -> Mapping[str, Any]:
        """Revokes the tenant's grants at their providers, and erases them."""
        receipt = dict(await self._services.loans.erase(job.bearer))
        unrevoked = receipt.pop("unrevoked")
        return {"services": {"credentials": receipt}, "unrevoked_grants": unrevoked}

    async def _erase_counters(self, job: Job) -> Mapping[str, Any]:
        return {"services": {"ratelimit": await self._services.counters.erase(job.bearer)}}

    async def _erase_own(self, job: Job) -> Mapping[str, Any]:
        """Erases every row here but the tombstone, and looks whether any is left.

        The evidence is written with the first try: another one finds nothing to count.
        """
        async with self._database.service() as connection:
            counts = await deletion_store.erase_own(connection, job.tenant)
            receipt = {"erased_at": moment(await certificate_store.now(connection)), **counts}
            await tombstone_store.keep_once(connection, job.tenant, "provisioner", receipt)
        for each in self._forgetting:
            each.forget(job.tenant)
        async with self._database.service() as connection:
            left = await deletion_store.count_own(connection, job.tenant)
        if left:
            raise StillThereError(f"{left} rows are left")
        return {}

    async def _erase_keys(self, job: Job) -> Mapping[str, Any]:
        """Last of all: what auth has to forget is what all others ask it for."""
        return {"services": {"auth": await self._services.keys.erase(job.bearer)}}

    async def _certify(self, job: Job) -> Mapping[str, Any]:
        """Issues the certificate in the same moment in which the deletion ends."""
        async with self._database.service() as connection:
            due = await tombstone_store.due(connection, job.tenant)
            if due is not None:
                found = due.tombstone
                document = of_tenant(
                    self._issuer,
                    found.operation_id,
                    found.tenant_id,
                    found.request_time,
                    due.now,
                    found.evidence,
                )
                await tombstone_store.end(connection, job.tenant, self._signer.sign(document))
        return {}

    async def _due(self, tenant: TenantId) -> Due | None:
        async with self._database.service() as connection:
            return await tombstone_store.due(connection, tenant)

    async def _job(self, due: Due) -> Job:
        """Returns the job with the key to act with, a new one well before the present one ends."""
        found = due.tombstone
        bearer = Bearer(self._secret.open(due.sealed_key, bound_to=found.operation_id))
        if due.stale:
            bearer = await self._renewed(found, bearer)
        return Job(found, bearer, due.now)

    async def _renewed(self, found: Tombstone, bearer: Bearer) -> Bearer:
        try:
            job = await self._services.keys.delegate(bearer, f"delete {found.tenant_id}")
        except BulkheadError as error:
            # What is still to be done may not need it, and the next look asks again.
            _log(found, found.step, error)
            return bearer
        async with self._database.service() as connection:
            key = self._operations.sealed(found.operation_id, job)
            await tombstone_store.set_key(connection, found.tenant_id, key)
        return job

    async def _enter(self, tenant: TenantId, step: Step) -> None:
        async with self._database.service() as connection:
            await tombstone_store.set_step(connection, tenant, step)

    async def _postpone(self, tenant: TenantId, delay: timedelta) -> timedelta:
        async with self._database.service() as connection:
            await tombstone_store.set_next_try(connection, tenant, delay)
        return delay

    async def _failed(self, found: Tombstone, step: Step, error: Exception) -> timedelta:
        _log(found, step, error)
        fail(trace.get_current_span(), type(error).__name__)
        delay = retry_delay(found.retries, random.random())  # noqa: S311 no secret
        async with self._database.service() as connection:
            await tombstone_store.set_retry(connection, found.tenant_id, _words(error), delay)
        return delay


def _words(error: Exception) -> str:
    """Returns what whoever has the token may read about `error`."""
    if isinstance(error, BulkheadError):
        return error.message
    return str(error) if isinstance(error, StillThereError) else "internal error"


def _log(found: Tombstone, step: Step, error: Exception) -> None:
    structlog.get_logger().warning(
        "deletion to be gone on with",
        operation_id=found.operation_id,
        step=step,
        retries=found.retries,
        error=type(error).__name__,
    )
