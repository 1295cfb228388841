"""The composition root of app_proxy."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from bulkhead.app_proxy.v1 import routing_service_pb2
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import add_RoutingServiceServicer_to_server
from bulkhead.common.v1 import access_pb2
from bulkhead.envoy.auth.v3 import authorization_pb2
from bulkhead.envoy.auth.v3.authorization_pb2_grpc import add_AuthorizationServicer_to_server
from starlette.types import ASGIApp

from services.app_proxy import ext_authz
from services.app_proxy.database.catalogue import Catalogue
from services.app_proxy.database.executor import Executor
from services.app_proxy.database.pools import open_pools
from services.app_proxy.database_tools import DatabaseTools
from services.app_proxy.ext_authz import DoorServicer
from services.app_proxy.mcp_endpoint import session_manager
from services.app_proxy.peers import (
    FINISH,
    GrantAuthorizations,
    ProvisionedDatabases,
    RatelimitLimits,
)
from services.app_proxy.route_cache import ValkeyRouteCache
from services.app_proxy.rpc import RoutingServicer
from services.app_proxy.service import Door, Routing
from services.app_proxy.settings import Settings
from services.app_proxy.store import RouteStore
from services.app_proxy.tools import Toolbox
from services.app_proxy.web import Callback, web_app
from services.app_proxy.web_server import PEER, serving_web
from services.shared.access import RemoteAuditor, RemoteAuthenticator, open_key_resolver
from services.shared.channel import open_channel
from services.shared.identity import open_identity
from services.shared.limits import CoalescedLimits
from services.shared.postgres import open_database
from services.shared.recording import Recording
from services.shared.redis import Valkey, open_valkey
from services.shared.server import Registration, Service

NAME = "app_proxy"
_MIGRATIONS = Path(__file__).parent / "migrations"


@asynccontextmanager
async def compose(settings: Settings) -> AsyncIterator[Service]:
    """Yields the service; its HTTP side is served for as long as it is yielded."""
    async with AsyncExitStack() as stack:
        identity = await stack.enter_async_context(open_identity(settings))
        channel = partial(open_channel, settings, identity=identity)
        auth = await stack.enter_async_context(channel("auth", settings.auth_target))
        limits = await stack.enter_async_context(channel("ratelimit", settings.ratelimit_target))
        provisioner = await stack.enter_async_context(
            channel("provisioner", settings.provisioner_target)
        )
        keys = await stack.enter_async_context(open_key_resolver(auth, Recording.of(settings)))
        database = await stack.enter_async_context(open_database(settings, NAME, _MIGRATIONS))
        cache = _cache(await stack.enter_async_context(open_valkey(settings)), settings)
        routing = Routing(RouteStore(database), cache, settings.domain)
        admissions = RatelimitLimits(CoalescedLimits(limits, settings.limit_patience_seconds))
        door = Door(routing.find, keys, admissions, settings.key_prefix)
        pools = await stack.enter_async_context(
            open_pools(ProvisionedDatabases(provisioner), settings.pool_limits())
        )
        credentials = await stack.enter_async_context(
            channel("credentials", settings.credentials_target, once=[FINISH])
        )
        callback = Callback(
            GrantAuthorizations(credentials), settings.api_hosts, settings.callbacks_in_flight
        )
        draining = asyncio.Event()
        app = _web(door, Executor(pools, settings.caps()), callback, settings, draining)
        await stack.enter_async_context(serving_web(app, settings, settings.http_listen, identity))
        yield Service(
            registrations=_registrations(routing, door),
            authenticator=RemoteAuthenticator(keys, settings.key_prefix),
            auditor=RemoteAuditor(auth),
            checks={"postgres": database.check, "valkey": cache.check},
            standard_access={
                ext_authz.SERVICE: access_pb2.Access(
                    keyless=True, peers=[PEER], audit=access_pb2.AUDIT_NONE
                )
            },
            identity=identity,
            draining=draining,
        )


def _cache(valkey: Valkey, settings: Settings) -> ValkeyRouteCache:
    return ValkeyRouteCache(
        valkey,
        seconds=settings.route_seconds,
        unknown_seconds=settings.route_unknown_seconds,
        tombstone_seconds=settings.route_tombstone_seconds,
    )


def _web(
    door: Door,
    executor: Executor,
    callback: Callback,
    settings: Settings,
    draining: asyncio.Event,
) -> ASGIApp:
    catalogue = Catalogue(executor)
    # Tools made from a deployment's own tables are one more source here.
    toolbox = Toolbox([DatabaseTools(executor, catalogue)])
    sessions = session_manager(toolbox, settings.request_bytes)
    bounds, recording = settings.bounds(), Recording.of(settings)
    return web_app(door, sessions, catalogue, toolbox, bounds, recording, callback, draining)


def _registrations(routing: Routing, door: Door) -> list[Registration]:
    return [
        Registration(
            descriptor=routing_service_pb2.DESCRIPTOR.services_by_name["RoutingService"],
            servicer=RoutingServicer(routing),
            add_to_server=add_RoutingServiceServicer_to_server,
        ),
        Registration(
            descriptor=authorization_pb2.DESCRIPTOR.services_by_name["Authorization"],
            servicer=DoorServicer(door),
            add_to_server=add_AuthorizationServicer_to_server,
        ),
    ]
