"""The use cases of connections on their own, with doubles of what may fail."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.credentials.completion import Completion
from services.credentials.connections import Connections
from services.credentials.deletion import Deletion, Revoker
from services.credentials.domain import OAuthClient
from services.credentials.peers import AuthAuditTrail, AuthRegistry
from services.credentials.ports import Bearer, Registry
from services.credentials.providers.catalogue import Catalogue, Provider
from services.credentials.providers.clients import OperatorClients, load_clients
from services.credentials.providers.files import load_catalogue
from services.credentials.providers.gateway import HttpGateway
from services.credentials.providers.outbound import open_outbound
from services.credentials.providers.places import Places, full
from services.credentials.refresh.locks import RefreshLocks
from services.credentials.settings import Settings
from services.shared.data_keys import DataKeys
from services.shared.ids import ConnectionId, DeploymentId, TenantId
from services.shared.key_resolver import KeyResolver
from services.shared.keyring import open_keyring
from services.shared.postgres import Connection, Database, open_database
from tests.databases import SERVICES
from tests.mesh import Mesh

PATIENCE = timedelta(seconds=30)


class KilledError(Exception):
    """The process ends here."""


class DyingDatabase(Database):
    """A database whose service dies before, or after, its nth transaction of a tenant."""

    def __init__(self, living: Database, settings: Settings, at: int, after: bool) -> None:
        super().__init__(living.pool, "credentials", settings)
        self._left = at
        self._after = after

    @asynccontextmanager
    async def tenant(self, tenant: TenantId) -> AsyncIterator[Connection]:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise KilledError
        async with super().tenant(tenant) as connection:
            yield connection
        if self._left == 0:
            raise KilledError


class FailingRegistry(AuthRegistry):
    """auth, which is asked and then fails, or knows a deployment no longer."""

    def __init__(self, mesh: Mesh, failure: Exception, at: int = 1) -> None:
        super().__init__(mesh.channel("auth", "credentials"))
        self._failure = failure
        self._left = at

    async def register(self, bearer: Bearer, connection: ConnectionId) -> None:
        self._count()

    async def retire(self, bearer: Bearer, connection: ConnectionId) -> None:
        await super().retire(bearer, connection)
        self._count()

    async def verify(self, bearer: Bearer, deployment: DeploymentId) -> None:
        await super().verify(bearer, deployment)
        self._count()

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            raise self._failure


class RecordingPlaces(Places):
    """Places for calls, and for whom they were taken."""

    def __init__(self, places: int) -> None:
        super().__init__(places)
        self.taken: list[tuple[TenantId, str]] = []

    @asynccontextmanager
    async def take(
        self, tenant: TenantId, provider: str, patience: timedelta
    ) -> AsyncIterator[None]:
        async with super().take(tenant, provider, patience):
            self.taken.append((tenant, provider))
            yield


class FullPlaces(Places):
    """Places for calls, all of them taken."""

    @asynccontextmanager
    async def take(self, *_: object) -> AsyncIterator[None]:
        raise full()
        yield


class RecordingGateway(HttpGateway):
    """The gateway, and what it was asked to revoke."""

    revoked: list[str]

    async def revoke(
        self,
        provider: Provider,
        client: OAuthClient,
        parameters: Mapping[str, str],
        *,
        token: str,
        hint: str,
    ) -> None:
        self.revoked.append(token)
        await super().revoke(provider, client, parameters, token=token, hint=hint)


@dataclass(frozen=True, slots=True)
class Parts:
    """What the use cases are made of, over the database of the mesh."""

    mesh: Mesh
    settings: Settings
    database: Database
    data_keys: DataKeys
    catalogue: Catalogue
    operators: OperatorClients
    gateway: RecordingGateway
    locks: RefreshLocks
    # How long a provider is waited for.
    within: timedelta = PATIENCE
    places: RecordingPlaces = field(default_factory=lambda: RecordingPlaces(8))

    def deletion(self, database: Database, registry: Registry | None = None) -> Deletion:
        revoker = Revoker(
            database,
            self.data_keys,
            self.catalogue,
            self.operators,
            self.gateway,
            self.locks,
            patience=PATIENCE,
            within=self.within,
        )
        return Deletion(database, revoker, registry or self.registry)

    def connections(self, registry: Registry | None = None, most: int = 9) -> Connections:
        return Connections(
            self.database,
            self.data_keys,
            self.catalogue,
            self.gateway,
            registry or self.registry,
            self.places,
            per_tenant=most,
        )

    def completion(self, places: Places) -> Completion:
        auth = self.mesh.channel("auth", "credentials")
        return Completion(
            self.database,
            self.data_keys,
            self.catalogue,
            self.operators,
            self.gateway,
            KeyResolver(AuthServiceStub(auth)),
            AuthAuditTrail(auth),
            places,
        )

    @property
    def registry(self) -> Registry:
        return AuthRegistry(self.mesh.channel("auth", "credentials"))


@asynccontextmanager
async def connection_parts(mesh: Mesh) -> AsyncIterator[Parts]:
    """Yields the parts, over the database of the mesh."""
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        migrations = SERVICES / "credentials" / "migrations"
        database = await enter(open_database(settings, "credentials", migrations))
        sessions = await enter(open_database(settings, "credentials", migrations))
        catalogue = load_catalogue(settings.providers_folder, private_targets=True)
        gateway = RecordingGateway(await enter(open_outbound(settings)))
        gateway.revoked = []
        yield Parts(
            mesh,
            settings,
            database,
            DataKeys(database, await enter(open_keyring(settings))),
            catalogue,
            load_clients(settings.oauth_clients_file, catalogue),
            gateway,
            RefreshLocks(sessions),
        )
