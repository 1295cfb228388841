"""Composition root of the ratelimit service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bulkhead.ratelimit.v1 import ratelimit_service_pb2
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import add_RatelimitServiceServicer_to_server

from services.ratelimit import rls_rpc
from services.ratelimit.counting import counting
from services.ratelimit.descriptors_watch import watched
from services.ratelimit.erasable_store import ErasableCounters
from services.ratelimit.erasure import Erasure
from services.ratelimit.memory import Memory
from services.ratelimit.peers import AuthDeployments
from services.ratelimit.rls import DescriptorLimits
from services.ratelimit.rpc import RatelimitServicer
from services.ratelimit.service import Ratelimit
from services.ratelimit.settings import Settings
from services.ratelimit.window_store import WindowStore
from services.shared.access import RemoteAuditor, RemoteAuthenticator, open_key_resolver
from services.shared.channel import open_channel
from services.shared.identity import open_identity
from services.shared.postgres import open_database
from services.shared.recording import Recording
from services.shared.redis import open_valkey
from services.shared.server import Registration, Service

NAME = "ratelimit"
_MIGRATIONS = Path(__file__).parent / "migrations"


@asynccontextmanager
async def compose(settings: Settings) -> AsyncIterator[Service]:
    """Yields the service with its store and peers open; closes them in reverse."""
    memory = Memory.new()
    async with (
        watched(settings.ratelimit_config, settings.ratelimit_config_seconds) as descriptors,
        open_identity(settings) as identity,
        open_database(settings, NAME, _MIGRATIONS) as database,
        open_valkey(settings) as valkey,
        open_channel(settings, "auth", settings.auth_target, identity=identity) as auth,
        open_key_resolver(auth, Recording.of(settings)) as keys,
        counting(settings, valkey, database, memory) as counters,
    ):
        deployments = AuthDeployments(auth)
        ratelimit = Ratelimit(settings.plan_limits(), keys, counters, deployments)
        erasable = ErasableCounters(valkey, settings.valkey_patience_seconds)
        erasure = Erasure(database, erasable, memory, deployments)
        windows = WindowStore(valkey, settings.valkey_patience_seconds)
        yield Service(
            registrations=[
                _registration(ratelimit, erasure),
                rls_rpc.registration(DescriptorLimits(descriptors, windows)),
            ],
            authenticator=RemoteAuthenticator(keys, settings.key_prefix),
            auditor=RemoteAuditor(auth),
            # Not auth: where its answers are remembered, calls are decided without it. Nor Valkey,
            # for a while.
            checks={"valkey": counters.check},
            standard_access={rls_rpc.SERVICE: rls_rpc.ACCESS},
            identity=identity,
        )


def _registration(ratelimit: Ratelimit, erasure: Erasure) -> Registration:
    return Registration(
        descriptor=ratelimit_service_pb2.DESCRIPTOR.services_by_name["RatelimitService"],
        servicer=RatelimitServicer(ratelimit, erasure),
        add_to_server=add_RatelimitServiceServicer_to_server,
    )
