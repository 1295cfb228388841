"""Composition of the provisioner."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    add_ProvisionerServiceServicer_to_server,
)

from services.provisioner import store
from services.provisioner.administrators import Administrators
from services.provisioner.changes import open_changes
from services.provisioner.creation import Creation
from services.provisioner.databases import DatabaseService
from services.provisioner.deletion import Deletion
from services.provisioner.deployments import DeploymentService
from services.provisioner.dispatch import Dispatch
from services.provisioner.domain import OperationKind
from services.provisioner.drivers import local, local_database
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
from services.provisioner.peers import AuthRegistry, CredentialsLoans, ProxyRoutes
from services.provisioner.plans.deleting import Deleting
from services.provisioner.plans.making import Making
from services.provisioner.queue import WorkQueue, work
from services.provisioner.reconciler import Reconciler
from services.provisioner.rpc import ProvisionerRpc
from services.provisioner.secrets import Secrets
from services.provisioner.service import ProvisionerService
from services.provisioner.settings import Settings
from services.provisioner.sleeping import Sleeping
from services.provisioner.sweep import Sweep
from services.provisioner.uses import Uses
from services.provisioner.waking import Waking
from services.provisioner.work import Boundary, Plan, Unwatched
from services.shared.access import RemoteAuditor, RemoteAuthenticator, open_key_resolver
from services.shared.background import background
from services.shared.channel import open_channel
from services.shared.data_keys import DataKeys
from services.shared.keyring import open_keyring
from services.shared.postgres import Database, open_database
from services.shared.server import Registration, Service

_NAME = "provisioner"
_MIGRATIONS = Path(__file__).parent / "migrations"


@asynccontextmanager
async def compose(settings: Settings, boundary: Boundary | None = None) -> AsyncIterator[Service]:
    """Yields the provisioner, ready to be served, its workers at work."""
    boundary = boundary or Unwatched()
    secret = read_master_secret(settings.database_secret_file)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings, _NAME, _MIGRATIONS))
        locks = DeploymentLocks(
            await enter(open_database(_for_locks(settings), _NAME, _MIGRATIONS))
        )
        auth = await enter(open_channel(settings, "auth", settings.auth_target))
        proxy = await enter(open_channel(settings, "app_proxy", settings.app_proxy_target))
        credentials = await enter(
            open_channel(settings, "credentials", settings.credentials_target)
        )
        resolver = await enter(open_key_resolver(auth))
        changes = await enter(open_changes(database))

        data_keys = DataKeys(database, await enter(open_keyring(settings)))
        driver = await _local_driver(settings, secret, database)
        registry, queue = AuthRegistry(auth), WorkQueue(f"{_NAME}_service")
        operations = Operations(secret, queue)
        routes, loans = ProxyRoutes(proxy), CredentialsLoans(credentials)
        uses = Uses()
        waking = Waking(database, locks, driver, uses)
        listening = Listening(database, await enter(_listeners(settings, waking)))
        making = Making(database, registry, routes, driver, waking, listening)
        deleting = Deleting(registry, routes, loans, driver)
        deployments = DeploymentService(database, changes)
        databases = DatabaseService(deployments, waking, listening, driver, local.DATABASE)
        administrators = Administrators(database, data_keys)
        service = ProvisionerService(
            creation=Creation(
                database,
                locks,
                operations,
                registry,
                making,
                administrators,
                boundary,
                domain=settings.domain,
                deployments_per_tenant=settings.deployments_per_tenant,
            ),
            deletion=Deletion(database, locks, operations, registry, deleting, boundary),
            deployments=deployments,
            databases=databases,
            secrets=Secrets(database, data_keys, per_deployment=settings.secrets_per_deployment),
            environments=Environments(database, data_keys, databases),
            administrators=administrators,
        )
        plans: dict[OperationKind, Plan] = {
            OperationKind.CREATE: making,
            OperationKind.DELETE: deleting,
        }
        reconciler = Reconciler(
            database, locks, registry, plans, secret, boundary, create_tries=settings.create_tries
        )
        await listening.match()
        sweep = Sweep(database, locks, queue, waking, listening, driver)
        sleeping = Sleeping(database, locks, driver, uses)
        await enter(background(work(settings, Dispatch(reconciler).reconcile)))
        await enter(background(sweep.run(settings.sweep_seconds)))
        await enter(background(sleeping.run(settings.look_seconds)))
        await enter(background(driver.keep_spare()))
        yield Service(
            registrations=[
                Registration(
                    pb2.DESCRIPTOR.services_by_name["ProvisionerService"],
                    ProvisionerRpc(service),
                    add_ProvisionerServiceServicer_to_server,
                )
            ],
            authenticator=RemoteAuthenticator(resolver, settings.key_prefix),
            auditor=RemoteAuditor(auth),
            checks={"postgres": database.check},
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
