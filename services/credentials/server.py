"""Composition of credentials."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

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
from services.credentials.keyring import Keyring
from services.credentials.peers import AuthAuditor, AuthAuditTrail, AuthRegistry
from services.credentials.providers.clients import load_clients
from services.credentials.providers.files import load_catalogue
from services.credentials.providers.gateway import HttpGateway
from services.credentials.providers.outbound import open_outbound
from services.credentials.providers.places import Places
from services.credentials.refresh.locks import RefreshLocks
from services.credentials.refresh.terms import Unobserved
from services.credentials.rewrapping import Rewrapping
from services.credentials.rpc import CredentialsRpc
from services.credentials.rpc.keyring import KeyringRpc
from services.credentials.service import CredentialsService
from services.credentials.settings import Settings
from services.credentials.webhook_delivery import Deliveries
from services.credentials.webhooks import Webhooks
from services.shared.access import RemoteAuthenticator, open_key_resolver
from services.shared.background import background
from services.shared.channel import open_channel
from services.shared.data_keys import DataKeys
from services.shared.keyring import open_keyring
from services.shared.postgres import open_database
from services.shared.server import Registration, Service

_NAME = "credentials"
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
        database = await enter(open_database(settings, _NAME, _MIGRATIONS))
        keks = await enter(open_keyring(settings))
        data_keys = DataKeys(database, keks)
        rewrapping = Rewrapping(database, keks)
        keyring = Keyring(database, keks, rewrapping)
        await keyring.verify()
        auth = await enter(open_channel(settings, "auth", settings.auth_target))
        resolver = await enter(open_key_resolver(auth))
        catalogue = load_catalogue(
            settings.providers_folder, private_targets=settings.allow_private_targets
        )
        operators = load_clients(settings.oauth_clients_file, catalogue)
        gateway = HttpGateway(await enter(open_outbound(settings)))
        locks = RefreshLocks(await enter(open_database(_for_locks(settings), _NAME, _MIGRATIONS)))
        registry, trail = AuthRegistry(auth), AuthAuditTrail(auth)
        webhooks = Webhooks(
            database, data_keys, allow_private_targets=settings.allow_private_targets
        )
        deliveries = Deliveries(
            database,
            data_keys,
            await enter(open_outbound(_for_webhooks(settings))),
            first_retry=timedelta(seconds=settings.webhook_retry_seconds),
            poll_seconds=settings.webhook_poll_seconds,
        )
        await enter(background(deliveries.run()))
        revoker = Revoker(
            database,
            data_keys,
            catalogue,
            operators,
            gateway,
            locks,
            patience=timedelta(seconds=settings.provider_timeout_seconds) + _REFRESH_ENDS,
            within=_REVOKED_WITHIN,
        )
        needs = Needs(
            database,
            data_keys,
            catalogue,
            operators,
            gateway,
            trail,
            locks,
            Unobserved(),
        )
        places = Places(_CALLS_AT_ONCE)
        erasure = Erasure(database, data_keys, revoker)
        stack.push_async_callback(erasure.close)
        service = CredentialsService(
            catalogue=catalogue,
            operators=operators,
            connections=Connections(
                database,
                data_keys,
                catalogue,
                gateway,
                registry,
                places,
                per_tenant=settings.connections_per_tenant,
            ),
            deletion=Deletion(database, revoker, registry),
            authorizations=Authorizations(
                database,
                data_keys,
                catalogue,
                operators,
                gateway,
                registry,
                Redirect(settings.redirect_url, timedelta(seconds=settings.authorization_seconds)),
                per_tenant=settings.connections_per_tenant,
            ),
            completion=Completion(
                database, data_keys, catalogue, operators, gateway, resolver, trail, places
            ),
            bindings=Bindings(database, registry, per_deployment=settings.bindings_per_deployment),
            webhooks=webhooks,
            erasure=erasure,
            vending=(await enter(open_vending(settings, needs))).vending,
        )
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
                    KeyringRpc(keyring),
                    add_KeyringServiceServicer_to_server,
                ),
            ],
            authenticator=RemoteAuthenticator(resolver, settings.key_prefix),
            auditor=AuthAuditor(auth),
            checks={"postgres": database.check},
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
