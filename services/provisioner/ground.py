"""What the provisioner's use cases and workers stand on, opened in order."""

from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc

from services.provisioner.backup_files import BackupFiles, make_home
from services.provisioner.buckets import open_buckets
from services.provisioner.certificates import CertificateKeys, read_certificate_keys
from services.provisioner.changes import Changes, open_changes
from services.provisioner.database_drivers import open_database_driver
from services.provisioner.deletion_peers import (
    AuthKeys,
    CredentialsOfTenant,
    ProxyHosts,
    RatelimitOfTenant,
)
from services.provisioner.drivers import local, local_database
from services.provisioner.drivers.bucket_protocol import BucketDriver
from services.provisioner.drivers.listener import Place, open_listeners
from services.provisioner.drivers.port_range import PortRange
from services.provisioner.drivers.protocol import DatabaseDriver, DatabaseListeners
from services.provisioner.drivers.reception import House
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
from services.provisioner.queue import WorkQueue
from services.provisioner.settings import Settings
from services.provisioner.tenant_deleting import TenantServices
from services.provisioner.uses import Uses
from services.provisioner.waking import Waking
from services.provisioner.work import Boundary
from services.shared.channel import open_channel
from services.shared.data_keys import DataKeys
from services.shared.identity import WatchedIdentity
from services.shared.keyring import open_keyring
from services.shared.keyring.keyring import Keyring
from services.shared.keyring.rewrapping import Rewrapping
from services.shared.postgres import Database, open_database

_NAME = "provisioner"
_MIGRATIONS = Path(__file__).parent / "migrations"


@dataclass(frozen=True, slots=True)
class Peers:
    """The other services, as the provisioner sees them."""

    registry: AuthRegistry
    routes: ProxyRoutes
    loans: CredentialsLoans
    counters: RatelimitCounters
    # The same, for the end of tenants.
    of_tenants: TenantServices


@dataclass(frozen=True, slots=True)
class Ground:
    """What the use cases and the workers stand on."""

    settings: Settings
    database: Database
    # The same with a pool of its own, for what nobody waits for in a call.
    work_database: Database
    secret: MasterSecret
    certificate_keys: CertificateKeys
    locks: DeploymentLocks
    queue: WorkQueue
    operations: Operations
    changes: Changes
    data_keys: DataKeys
    rewrapping: Rewrapping
    keyring: Keyring
    peers: Peers
    driver: DatabaseDriver
    bucket_driver: BucketDriver | None
    buckets: OwnBuckets
    backup_files: BackupFiles
    uses: Uses
    waking: Waking
    listening: Listening
    boundary: Boundary


async def open_ground(
    settings: Settings,
    stack: AsyncExitStack,
    identity: WatchedIdentity,
    auth: grpc.aio.Channel,
    boundary: Boundary,
) -> Ground:
    """Returns all of it; what is open is closed with the stack, in reverse.

    Raises:
        UnusableFileError: a file cannot be used, or the keyring has none of the keys in use.
    """
    enter = stack.enter_async_context
    secret = read_master_secret(settings.database_secret_file)
    database = await enter(open_database(settings, _NAME, _MIGRATIONS))
    locks = DeploymentLocks(
        await enter(_pool(settings, "locks", settings.lock_pool_size)), for_calls=settings.at_once
    )
    driver = await enter(open_database_driver(settings, secret, database))
    bucket_driver = await enter(open_buckets(settings, secret))
    keks = await enter(open_keyring(settings))
    rewrapping = Rewrapping(database, keks)
    keyring = Keyring(database, keks, rewrapping)
    await keyring.verify()
    queue, uses = WorkQueue(f"{_NAME}_service"), Uses()
    waking = Waking(database, locks, driver, uses)
    return Ground(
        settings=settings,
        database=database,
        work_database=await enter(_pool(settings, "work", settings.at_once + 2)),
        secret=secret,
        certificate_keys=read_certificate_keys(
            settings.certificate_key_file, settings.certificate_former_keys_file
        ),
        locks=locks,
        queue=queue,
        operations=Operations(secret, queue),
        changes=await enter(open_changes(database)),
        data_keys=DataKeys(database, keks),
        rewrapping=rewrapping,
        keyring=keyring,
        peers=await _peers(settings, stack, identity, auth),
        driver=driver,
        bucket_driver=bucket_driver,
        buckets=OwnBuckets(database, bucket_driver),
        backup_files=BackupFiles(make_home(settings.backups_home), bucket_driver),
        uses=uses,
        waking=waking,
        listening=Listening(database, await enter(_listeners(settings, waking))),
        boundary=boundary,
    )


async def _peers(
    settings: Settings, stack: AsyncExitStack, identity: WatchedIdentity, auth: grpc.aio.Channel
) -> Peers:
    proxy, credentials, ratelimit = [
        await stack.enter_async_context(open_channel(settings, name, target, identity=identity))
        for name, target in (
            ("app_proxy", settings.app_proxy_target),
            ("credentials", settings.credentials_target),
            ("ratelimit", settings.ratelimit_target),
        )
    ]
    return Peers(
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


def _listeners(
    settings: Settings, waking: Waking
) -> AbstractAsyncContextManager[DatabaseListeners]:
    return open_listeners(
        waking,
        House(local.DATABASE, frozenset(local_database.LOGINS), settings.listener_connections),
        PortRange(settings.listener_port_first, settings.listener_port_last),
        Place(settings.listener_host, settings.listener_address or settings.listener_host),
    )


def _pool(settings: Settings, name: str, size: int) -> AbstractAsyncContextManager[Database]:
    sized = settings.model_copy(update={"postgres_pool_size": size})
    return open_database(sized, _NAME, _MIGRATIONS, pool_name=f"{_NAME}.{name}")
