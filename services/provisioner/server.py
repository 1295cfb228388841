"""Composition of the provisioner."""

from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    add_KeyringServiceServicer_to_server,
    add_ProvisionerServiceServicer_to_server,
)
from opentelemetry import metrics

from services.provisioner.administrators import Administrators
from services.provisioner.backup_sweep import BackupSweep
from services.provisioner.backups import Backups
from services.provisioner.branching import Branching
from services.provisioner.bucket_sweep import BucketSweep
from services.provisioner.certificate_tokens import CertificateTokens
from services.provisioner.certification import Certification
from services.provisioner.creation import Creation
from services.provisioner.databases import DatabaseService
from services.provisioner.deletion import Deletion
from services.provisioner.deployments import DeploymentService
from services.provisioner.dispatch import Dispatch
from services.provisioner.domain import OperationKind
from services.provisioner.drivers import local
from services.provisioner.environment import Environments
from services.provisioner.figures import Census
from services.provisioner.ground import Ground, open_ground
from services.provisioner.planning import Plans, plans_of
from services.provisioner.queue import work
from services.provisioner.reconciler import Reconciler
from services.provisioner.rotation import Rotation
from services.provisioner.rpc import ProvisionerRpc
from services.provisioner.secrets import Secrets
from services.provisioner.service import ProvisionerService
from services.provisioner.settings import Settings
from services.provisioner.sleeping import Sleeping
from services.provisioner.suspension import Suspension
from services.provisioner.sweep import Sweep
from services.provisioner.tenant_deletion import TenantDeletion
from services.provisioner.updating import Terms, Updating
from services.provisioner.work import Boundary, Unwatched
from services.shared.access import RemoteAuditor, RemoteAuthenticator, open_key_resolver
from services.shared.background import background
from services.shared.channel import open_channel
from services.shared.identity import open_identity
from services.shared.keyring.rpc import KeyringRpc
from services.shared.postgres import Database
from services.shared.recording import SCOPE, Recording
from services.shared.server import Registration, Service


@asynccontextmanager
async def compose(settings: Settings, boundary: Boundary | None = None) -> AsyncIterator[Service]:
    """Yields the provisioner, ready to be served, its workers at work."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        identity = await enter(open_identity(settings))
        auth = await enter(open_channel(settings, "auth", settings.auth_target, identity=identity))
        resolver = await enter(open_key_resolver(auth, Recording.of(settings)))
        ground = await open_ground(settings, stack, identity, auth, boundary or Unwatched())
        plans = plans_of(replace(ground, database=ground.work_database))
        await _start_workers(ground, plans, stack)
        yield Service(
            registrations=[
                Registration(
                    pb2.DESCRIPTOR.services_by_name["ProvisionerService"],
                    ProvisionerRpc(_service(ground, plans)),
                    add_ProvisionerServiceServicer_to_server,
                ),
                Registration(
                    pb2.DESCRIPTOR.services_by_name["KeyringService"],
                    KeyringRpc(ground.keyring, pb2),
                    add_KeyringServiceServicer_to_server,
                ),
            ],
            authenticator=RemoteAuthenticator(resolver, settings.key_prefix),
            auditor=RemoteAuditor(auth),
            checks={"postgres": ground.database.check},
            identity=identity,
        )


def _service(ground: Ground, plans: Plans) -> ProvisionerService:
    settings, database, locks = ground.settings, ground.database, ground.locks
    operations, registry = ground.operations, ground.peers.registry
    deployments = DeploymentService(database, ground.changes)
    databases = DatabaseService(
        deployments, ground.waking, ground.listening, ground.driver, local.DATABASE
    )
    administrators = Administrators(database, ground.data_keys)
    tokens = CertificateTokens(ground.secret)
    creation = Creation(
        database,
        locks,
        operations,
        registry,
        plans.making,
        administrators,
        ground.buckets,
        ground.boundary,
        domain=settings.domain,
        deployments_per_tenant=settings.deployments_per_tenant,
    )
    return ProvisionerService(
        creation=creation,
        branching=Branching(database, creation),
        backups=_backups(ground),
        deletion=Deletion(
            database, locks, operations, registry, plans.deleting, tokens, ground.boundary
        ),
        tenant_deletion=TenantDeletion(
            database,
            ground.queue,
            operations,
            ground.peers.of_tenants.keys,
            plans.deleting_tenants,
            tokens,
        ),
        certification=Certification(database, ground.certificate_keys),
        deployments=deployments,
        databases=databases,
        updating=Updating(database, locks, ground.driver),
        suspension=Suspension(
            database, locks, operations, registry, plans.suspending, ground.boundary
        ),
        rotation=Rotation(database, operations, registry),
        terms=_terms(settings),
        secrets=Secrets(database, ground.data_keys, per_deployment=settings.secrets_per_deployment),
        environments=Environments(database, ground.data_keys, databases, ground.buckets),
        administrators=administrators,
    )


def _backups(ground: Ground) -> Backups:
    return Backups(
        ground.database,
        ground.operations,
        ground.peers.registry,
        ground.backup_files,
        per_deployment=ground.settings.backups_per_deployment,
        supported=ground.driver.backs_up,
    )


async def _start_workers(ground: Ground, plans: Plans, stack: AsyncExitStack) -> None:
    settings, database, locks = ground.settings, ground.work_database, ground.locks
    reconciler = Reconciler(
        database,
        locks,
        ground.peers.registry,
        {
            OperationKind.CREATE: plans.making,
            OperationKind.DELETE: plans.deleting,
            OperationKind.SUSPEND: plans.suspending,
            OperationKind.RESUME: plans.resuming,
            OperationKind.ROTATE: plans.rotating,
            OperationKind.BACK_UP: plans.backing_up,
        },
        ground.secret,
        ground.boundary,
        create_tries=settings.create_tries,
    )
    removes = settings.remove_unwanted
    sweep = Sweep(
        database,
        locks,
        ground.queue,
        ground.waking,
        ground.listening,
        ground.driver,
        BackupSweep(database, _backups(ground), ground.backup_files, removes=removes),
        BucketSweep(database, locks, ground.buckets, ground.bucket_driver, removes=removes),
        removes=removes,
    )
    sleeping = Sleeping(database, locks, ground.driver, ground.uses, settings.measure_seconds)
    await ground.listening.match()
    for running in (
        work(
            settings,
            Dispatch(database, reconciler, plans.deleting_tenants, settings.at_once).reconcile,
            timedelta(seconds=settings.heartbeat_seconds),
        ),
        sweep.run(settings.sweep_seconds),
        ground.rewrapping.run(),
        sleeping.run(settings.look_seconds),
        *_counting(settings, database),
        ground.driver.keep_spare(),
    ):
        await stack.enter_async_context(background(running))


def _counting(settings: Settings, database: Database) -> list[Coroutine[Any, Any, None]]:
    """Returns what counts the work there is, where anybody wants to know."""
    if not settings.is_measured:
        return []
    return [Census(database, metrics.get_meter(SCOPE)).run()]


def _terms(settings: Settings) -> Terms:
    return Terms(
        settings.storage_bytes_usual,
        settings.storage_bytes_most,
        timedelta(seconds=settings.idle_seconds_usual),
    )
