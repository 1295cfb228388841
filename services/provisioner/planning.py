"""How each kind of operation is done, put together."""

from dataclasses import dataclass

from services.provisioner.deletion_ports import Ending
from services.provisioner.ground import Ground
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
from services.provisioner.tenant_deleting import TenantDeleting


@dataclass(frozen=True, slots=True)
class Plans:
    """How each kind of operation is done."""

    making: Making
    deleting: Deleting
    deleting_tenants: TenantDeleting
    suspending: Suspending
    resuming: Resuming
    rotating: Rotating
    backing_up: BackingUp


def plans_of(ground: Ground) -> Plans:
    """Returns the plan of each kind of operation."""
    database, driver, peers = ground.database, ground.driver, ground.peers
    registry, routes, loans = peers.registry, peers.routes, peers.loans
    origins = Origins(database, driver, ground.backup_files)
    return Plans(
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
        suspending=Suspending(database, routes, loans, driver, ground.buckets),
        resuming=Resuming(database, routes, loans, ground.buckets),
        rotating=Rotating(database, routes, driver),
        backing_up=BackingUp(database, driver, ground.backup_files),
    )


def _deleting(ground: Ground) -> Deleting:
    peers = ground.peers
    endings: list[Ending] = [
        KeysEnding(peers.registry, peers.of_tenants.keys),
        RouteEnding(peers.routes, peers.of_tenants.routes),
        LoansEnding(peers.of_tenants.loans),
        CountersEnding(peers.of_tenants.counters),
        DatabaseEnding(ground.driver, ground.listening),
        BackupsEnding(ground.database, ground.backup_files),
        BucketEnding(ground.bucket_driver),
        SecretsEnding(ground.database),
    ]
    return Deleting(ground.database, endings, ground.certificate_keys, ground.settings.domain)


def _deleting_tenants(ground: Ground) -> TenantDeleting:
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
