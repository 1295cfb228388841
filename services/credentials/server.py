"""Composition of credentials."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

import httpx
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import (
    add_CredentialsServiceServicer_to_server,
    add_KeyringServiceServicer_to_server,
)

from services.credentials.assembly import Needs, open_vending
from services.credentials.authorizations import Authorizations, Redirect
from services.credentials.bindings import Bindings
from services.credentials.completion import Completion
from services.credentials.connections import Connections
from services.credentials.deletion import REVOCATIONS_AT_ONCE, Deletion, Revoker
from services.credentials.erasure import Erasure
from services.credentials.peers import AuthAuditor, AuthAuditTrail, AuthRegistry
from services.credentials.ports import Keys
from services.credentials.providers.clients import load_clients
from services.credentials.providers.files import load_catalogue
from services.credentials.providers.gateway import HttpGateway
from services.credentials.providers.outbound import open_outbound
from services.credentials.providers.places import Places
from services.credentials.refresh.locks import RefreshLocks
from services.credentials.refresh.terms import Unobserved
from services.credentials.rpc import CredentialsRpc
from services.credentials.service import CredentialsService
from services.credentials.settings import Settings
from services.credentials.suspensions import Suspensions
from services.credentials.vending import Vending
from services.credentials.webhook_delivery import Deliveries
from services.credentials.webhooks import Webhooks
from services.shared.access import RemoteAuthenticator, open_key_resolver
from services.shared.background import background
from services.shared.channel import open_channel
from services.shared.data_keys import DataKeys
from services.shared.identity import open_identity
from services.shared.keyring import open_keyring
from services.shared.keyring.keyring import Keyring
from services.shared.keyring.rewrapping import Rewrapping
from services.shared.keyring.rpc import KeyringRpc
from services.shared.postgres import open_database
from services.shared.recording import Recording
from services.shared.server import Registration, Service

_NAME = "credentials"
# The name of the pool whose connections hold locks.
_LOCKS = "credentials.locks"
_MIGRATIONS = Path(__file__).parent / "migrations"
# Beyond the provider's time to answer, for what it gave to be written down.
_REFRESH_ENDS = timedelta(seconds=5)
# Calls that wait for a provider to be asked, but for refreshes, which have places of their own.
_CALLS_AT_ONCE = 64
# Whoever deletes waits for no provider for longer: what it does not confirm, a person is told of.
_REVOKED_WITHIN = timedelta(seconds=8)


@asynccontextmanager
async def compose(settings: Settings) -> AsyncIterator[Service]:
    """Yields credentials, ready to be served, its upkeep at work."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        identity = await enter(open_identity(settings))
        database = await enter(open_database(settings, _NAME, _MIGRATIONS))
        keks = await enter(open_keyring(settings))
        data_keys = DataKeys(database, keks)
        rewrapping = Rewrapping(database, keks)
        keyring = Keyring(database, keks, rewrapping)
        await keyring.verify()
        auth = await enter(open_channel(settings, "auth", settings.auth_target, identity=identity))
        resolver = await enter(open_key_resolver(auth, Recording.of(settings)))
        catalogue = load_catalogue(
            settings.providers_folder, private_targets=settings.allow_private_targets
        )
        needs = Needs(
            database,
            data_keys,
            catalogue,
            load_clients(settings.oauth_clients_file, catalogue),
            HttpGateway(await enter(open_outbound(settings))),
            AuthAuditTrail(auth),
            RefreshLocks(
                await enter(
                    open_database(_for_locks(settings), _NAME, _MIGRATIONS, pool_name=_LOCKS)
                )
            ),
            Unobserved(),
        )
        webhook_calls = await enter(open_outbound(_for_webhooks(settings)))
        await enter(background(_deliveries(settings, needs, webhook_calls).run()))
        revoker = _revoker(settings, needs)
        erasure = Erasure(database, data_keys, revoker)
        stack.push_async_callback(erasure.close)
        vending = (await enter(open_vending(settings, needs))).vending
        service = _service(settings, needs, AuthRegistry(auth), resolver, revoker, erasure, vending)
        await enter(background(rewrapping.run()))
        yield Service(
            registrations=[
                Registration(
                    pb2.DESCRIPTOR.services_by_name["CredentialsService"],
                    CredentialsRpc(service),
                    add_CredentialsServiceServicer_to_server,
                ),
                Registration(
                    pb2.DESCRIPTOR.services_by_name["KeyringService"],
                    KeyringRpc(keyring, pb2),
                    add_KeyringServiceServicer_to_server,
                ),
            ],
            authenticator=RemoteAuthenticator(resolver, settings.key_prefix),
            auditor=AuthAuditor(auth),
            checks={"postgres": database.check},
            identity=identity,
        )


def _deliveries(settings: Settings, needs: Needs, http: httpx.AsyncClient) -> Deliveries:
    return Deliveries(
        needs.database,
        needs.data_keys,
        http,
        first_retry=timedelta(seconds=settings.webhook_retry_seconds),
        poll_seconds=settings.webhook_poll_seconds,
    )


def _revoker(settings: Settings, needs: Needs) -> Revoker:
    return Revoker(
        needs.database,
        needs.data_keys,
        needs.catalogue,
        needs.clients,
        needs.gateway,
        needs.locks,
        patience=timedelta(seconds=settings.provider_timeout_seconds) + _REFRESH_ENDS,
        within=_REVOKED_WITHIN,
    )


def _service(
    settings: Settings,
    needs: Needs,
    registry: AuthRegistry,
    keys: Keys,
    revoker: Revoker,
    erasure: Erasure,
    vending: Vending,
) -> CredentialsService:
    database, data_keys, catalogue = needs.database, needs.data_keys, needs.catalogue
    clients, gateway, places = needs.clients, needs.gateway, Places(_CALLS_AT_ONCE)
    most = settings.connections_per_tenant
    redirect = Redirect(settings.redirect_url, timedelta(seconds=settings.authorization_seconds))
    return CredentialsService(
        catalogue=catalogue,
        operators=clients,
        connections=Connections(
            database, data_keys, catalogue, gateway, registry, places, per_tenant=most
        ),
        deletion=Deletion(database, revoker, registry),
        authorizations=Authorizations(
            database, data_keys, catalogue, clients, gateway, registry, redirect, per_tenant=most
        ),
        completion=Completion(
            database, data_keys, catalogue, clients, gateway, keys, needs.trail, places
        ),
        bindings=Bindings(database, registry, per_deployment=settings.bindings_per_deployment),
        suspensions=Suspensions(database, registry),
        webhooks=Webhooks(
            database, data_keys, allow_private_targets=settings.allow_private_targets
        ),
        erasure=erasure,
        vending=vending,
    )


def _for_locks(settings: Settings) -> Settings:
    """Returns how locks are held: each by a session of its own, beside what is asked of tables."""
    sessions = settings.refresh_pool_size + REVOCATIONS_AT_ONCE
    return settings.model_copy(update={"postgres_pool_size": sessions})


def _for_webhooks(settings: Settings) -> Settings:
    """Returns what calls to webhooks heed: their own patience, in connections of their own."""
    return settings.model_copy(
        update={"provider_timeout_seconds": settings.webhook_timeout_seconds}
    )
