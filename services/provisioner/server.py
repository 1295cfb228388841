"""Composition of the provisioner."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    add_ProvisionerServiceServicer_to_server,
)

from services.provisioner import store
from services.provisioner.administrators import Administrators
from services.provisioner.backup_files import BackupFiles, make_home
from services.provisioner.backup_sweep import BackupSweep
from services.provisioner.backups import Backups
from services.provisioner.branching import Branching
from services.provisioner.bucket_sweep import BucketSweep
from services.provisioner.buckets import open_buckets
from services.provisioner.certificate_tokens import CertificateTokens
from services.provisioner.certificates import CertificateKeys, read_certificate_keys
from services.provisioner.certification import Certification
from services.provisioner.changes import Changes, open_changes
from services.provisioner.creation import Creation
from services.provisioner.databases import DatabaseService
from services.provisioner.deletion import Deletion
from services.provisioner.deletion_peers import (
    AuthKeys,
    CredentialsOfTenant,
    ProxyHosts,
    RatelimitOfTenant,
)
from services.provisioner.deletion_ports import Ending
from services.provisioner.deployments import DeploymentService
from services.provisioner.dispatch import Dispatch
from services.provisioner.domain import OperationKind
from services.provisioner.drivers import local, local_database
from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.drivers.claim import claim
from services.provisioner.drivers.listener import open_listeners
from services.provisioner.drivers.local import LocalDriver
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.postgres_process import reachable_home
from services.provisioner.drivers.protocol import DatabaseListeners
from services.provisioner.drivers.reception import House
from services.provisioner.environment import Environments
from services.provisioner.listening import Listening
from services.provisioner.locks import DeploymentLocks
from services.provisioner.master_secret import MasterSecret, read_master_secret
from services.provisioner.operations import Operations
from services.provisioner.own_buckets import OwnBuckets
from services.provisioner.peers import (
    AuthRegistry,
    CredentialsLoans,
    ProxyRoutes,
    RatelimitCounters,
)
from services.provisioner.plans.backing_up import BackingUp, BackupsEnding
from services.provisioner.plans.deleting import Deleting
from services.provisioner.plans.endings import (
    BucketEnding,
    CountersEnding,
    DatabaseEnding,
    KeysEnding,
    LoansEnding,
    RouteEnding,
    SecretsEnding,
)
from services.provisioner.plans.making import Making
from services.provisioner.plans.origins import Origins
from services.provisioner.plans.rotating import Rotating
from services.provisioner.plans.suspending import Resuming, Suspending
from services.provisioner.queue import WorkQueue, work
from services.provisioner.reconciler import Reconciler
from services.provisioner.rotation import Rotation
from services.provisioner.rpc import ProvisionerRpc
from services.provisioner.secrets import Secrets
from services.provisioner.service import ProvisionerService
from services.provisioner.settings import Settings
from services.provisioner.sleeping import Sleeping
from services.provisioner.suspension import Suspension
from services.provisioner.sweep import Sweep
from services.provisioner.tenant_deleting import TenantDeleting, TenantServices
from services.provisioner.tenant_deletion import TenantDeletion
from services.provisioner.updating import Terms, Updating
from services.provisioner.uses import Uses
from services.provisioner.waking import Waking
from services.provisioner.work import Boundary, Unwatched
from services.shared.access import RemoteAuditor, RemoteAuthenticator, open_key_resolver
from services.shared.background import background
from services.shared.channel import open_channel
from services.shared.data_keys import DataKeys
from services.shared.keyring import open_keyring
from services.shared.postgres import Database, open_database
from services.shared.server import Registration, Service

_NAME = "provisioner"
_MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class _Peers:
    """The other services, as the provisioner sees them."""

    registry: AuthRegistry
    routes: ProxyRoutes
    loans: CredentialsLoans
    counters: RatelimitCounters
    # The same, for the end of tenants.
    of_tenants: TenantServices


@dataclass(frozen=True, slots=True)
class _Ground:
    """What the use cases and the workers stand on."""

    settings: Settings
    database: Database
    secret: MasterSecret
    certificate_keys: CertificateKeys
    locks: DeploymentLocks
    queue: WorkQueue
    operations: Operations
    changes: Changes
    data_keys: DataKeys
    peers: _Peers
    driver: LocalDriver
    bucket_driver: BucketDriver | None
    buckets: OwnBuckets
    backup_files: BackupFiles
    uses: Uses
    waking: Waking
    listening: Listening
    boundary: Boundary


@dataclass(frozen=True, slots=True)
class _Plans:
    """How each kind of operation is done."""

    making: Making
    deleting: Deleting
    deleting_tenants: TenantDeleting
    suspending: Suspending
    resuming: Resuming
    rotating: Rotating
    backing_up: BackingUp


@asynccontextmanager
async def compose(settings: Settings, boundary: Boundary | None = None) -> AsyncIterator[Service]:
    """Yields the provisioner, ready to be served, its workers at work."""
    async with AsyncExitStack() as stack:
        auth = await stack.enter_async_context(open_channel(settings, "auth", settings.auth_target))
        resolver = await stack.enter_async_context(open_key_resolver(auth))
        ground = await _ground(settings, stack, auth, boundary or Unwatched())
        plans = _plans(ground)
        await _start_workers(ground, plans, stack)
        yield Service(
            registrations=[
                Registration(
                    pb2.DESCRIPTOR.services_by_name["ProvisionerService"],
                    ProvisionerRpc(_service(ground, plans)),
                    add_ProvisionerServiceServicer_to_server,
                )
            ],
            authenticator=RemoteAuthenticator(resolver, settings.key_prefix),
            auditor=RemoteAuditor(auth),
            checks={"postgres": ground.database.check},
        )


async def _ground(
    settings: Settings, stack: AsyncExitStack, auth: grpc.aio.Channel, boundary: Boundary
) -> _Ground:
    enter = stack.enter_async_context
    secret = read_master_secret(settings.database_secret_file)
    database = await enter(open_database(settings, _NAME, _MIGRATIONS))
    locks = DeploymentLocks(await enter(open_database(_for_locks(settings), _NAME, _MIGRATIONS)))
    driver = await _local_driver(settings, secret, database)
    bucket_driver = await enter(open_buckets(settings, secret))
    queue, uses = WorkQueue(f"{_NAME}_service"), Uses()
    waking = Waking(database, locks, driver, uses)
    return _Ground(
        settings=settings,
        database=database,
        secret=secret,
        certificate_keys=read_certificate_keys(
            settings.certificate_key_file, settings.certificate_former_keys_file
        ),
        locks=locks,
        queue=queue,
        operations=Operations(secret, queue),
        changes=await enter(open_changes(database)),
        data_keys=DataKeys(database, await enter(open_keyring(settings))),
        peers=await _peers(settings, stack, auth),
        driver=driver,
        bucket_driver=bucket_driver,
        buckets=OwnBuckets(database, bucket_driver),
        backup_files=BackupFiles(make_home(settings.backups_home), bucket_driver),
        uses=uses,
        waking=waking,
        listening=Listening(database, await enter(_listeners(settings, waking))),
        boundary=boundary,
    )


async def _peers(settings: Settings, stack: AsyncExitStack, auth: grpc.aio.Channel) -> _Peers:
    proxy, credentials, ratelimit = [
        await stack.enter_async_context(open_channel(settings, name, target))
        for name, target in (
            ("app_proxy", settings.app_proxy_target),
            ("credentials", settings.credentials_target),
            ("ratelimit", settings.ratelimit_target),
        )
    ]
    return _Peers(
        AuthRegistry(auth),
        ProxyRoutes(proxy),
        CredentialsLoans(credentials),
        RatelimitCounters(ratelimit),
        TenantServices(
            AuthKeys(auth),
            ProxyHosts(proxy),
            CredentialsOfTenant(credentials),
            RatelimitOfTenant(ratelimit),
        ),
    )


def _plans(ground: _Ground) -> _Plans:
    database, driver, peers = ground.database, ground.driver, ground.peers
    registry, routes, loans = peers.registry, peers.routes, peers.loans
    origins = Origins(database, driver, ground.backup_files)
    return _Plans(
        making=Making(
            database,
            registry,
            routes,
            driver,
            ground.waking,
            ground.listening,
            ground.buckets,
            origins,
        ),
        deleting=_deleting(ground),
        deleting_tenants=_deleting_tenants(ground),
        suspending=Suspending(database, routes, loans, driver),
        resuming=Resuming(database, routes, loans),
        rotating=Rotating(database, routes, driver),
        backing_up=BackingUp(database, driver, ground.backup_files),
    )


def _deleting(ground: _Ground) -> Deleting:
    peers = ground.peers
    endings: list[Ending] = [
        KeysEnding(peers.registry, peers.of_tenants.keys),
        RouteEnding(peers.routes, peers.of_tenants.routes),
        LoansEnding(peers.of_tenants.loans),
        CountersEnding(peers.of_tenants.counters),
        DatabaseEnding(ground.driver),
        BackupsEnding(ground.database, ground.backup_files),
        BucketEnding(ground.bucket_driver),
        SecretsEnding(ground.database),
    ]
    if ground.bucket_driver is not None:
        endings.append(BucketEnding(ground.bucket_driver))
    return Deleting(ground.database, endings, ground.certificate_keys, ground.settings.domain)


def _deleting_tenants(ground: _Ground) -> TenantDeleting:
    return TenantDeleting(
        ground.database,
        ground.locks,
        ground.queue,
        ground.peers.of_tenants,
        ground.operations,
        ground.secret,
        ground.certificate_keys,
        ground.boundary,
        issuer=ground.settings.domain,
        forgetting=[ground.data_keys],
    )


def _service(ground: _Ground, plans: _Plans) -> ProvisionerService:
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


def _backups(ground: _Ground) -> Backups:
    return Backups(
        ground.database,
        ground.operations,
        ground.peers.registry,
        ground.backup_files,
        per_deployment=ground.settings.backups_per_deployment,
    )


async def _start_workers(ground: _Ground, plans: _Plans, stack: AsyncExitStack) -> None:
    settings, database, locks = ground.settings, ground.database, ground.locks
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
    sweep = Sweep(
        database,
        locks,
        ground.queue,
        ground.waking,
        ground.listening,
        ground.driver,
        BackupSweep(database, _backups(ground), ground.backup_files),
        BucketSweep(database, locks, ground.buckets, ground.bucket_driver),
    )
    sleeping = Sleeping(database, locks, ground.driver, ground.uses)
    await ground.listening.match()
    for running in (
        work(settings, Dispatch(reconciler, plans.deleting_tenants).reconcile),
        sweep.run(settings.sweep_seconds),
        sleeping.run(settings.look_seconds),
        ground.driver.keep_spare(),
    ):
        await stack.enter_async_context(background(running))


def _terms(settings: Settings) -> Terms:
    return Terms(
        settings.storage_bytes_usual,
        settings.storage_bytes_most,
        timedelta(seconds=settings.idle_seconds_usual),
    )


def _listeners(
    settings: Settings, waking: Waking
) -> AbstractAsyncContextManager[DatabaseListeners]:
    return open_listeners(
        waking,
        House(local.DATABASE, frozenset(local_database.LOGINS), settings.listener_connections),
        PortRange(settings.listener_port_first, settings.listener_port_last),
    )


def _for_locks(settings: Settings) -> Settings:
    return settings.model_copy(update={"postgres_pool_size": settings.lock_pool_size})


async def _local_driver(
    settings: Settings, secret: MasterSecret, database: Database
) -> LocalDriver:
    home = reachable_home(settings.servers_home)
    async with database.service() as connection:
        claim(home, await store.installation_mark(connection))
    return LocalDriver(
        home,
        secret,
        PortRange(settings.database_port_first, settings.database_port_last),
        round(settings.statement_timeout_seconds * 1000),
    )
