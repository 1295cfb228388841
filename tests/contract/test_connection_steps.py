"""What a connection is made and deleted by, step by step: each may fail, or be the last."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.bindings import Bindings, WantedBinding
from services.credentials.catalogue import Catalogue, Provider
from services.credentials.catalogue_files import load_catalogue
from services.credentials.connections import Connections
from services.credentials.deletion import Deletion, Revoker
from services.credentials.domain import ConnectionKind, OAuthClient, Revocation
from services.credentials.gateway import HttpGateway
from services.credentials.grants import refresh_place
from services.credentials.oauth_clients import OperatorClients, load_clients
from services.credentials.outbound import open_outbound
from services.credentials.peers import AuthRegistry
from services.credentials.ports import Bearer, Registry
from services.credentials.refresh_locks import RefreshLocks
from services.credentials.settings import Settings
from services.credentials.wanted import KeptSecret, NewConnection
from services.shared.data_keys import DataKeys
from services.shared.errors import (
    BulkheadError,
    LimitExceededError,
    NotFoundError,
    UnavailableError,
)
from services.shared.ids import ConnectionId, DeploymentId, TenantId
from services.shared.keyring import open_keyring
from services.shared.postgres import Connection, Database, open_database
from tests.databases import SERVICES
from tests.lending import Lender, below
from tests.mesh import Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble, hangs
from tests.refusals import expect_refused

PATIENCE = timedelta(seconds=30)
# How many transactions a deletion has, one after the other.
TRANSACTIONS = 5


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
            per_tenant=most,
        )

    @property
    def registry(self) -> Registry:
        return AuthRegistry(self.mesh.channel("auth", "credentials"))


@pytest.fixture(scope="session")
async def parts(mesh: Mesh) -> AsyncIterator[Parts]:
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


@pytest.fixture
async def lender(mesh: Mesh) -> Lender:
    return Lender(mesh, await mesh.customer())


async def delete_over_the_wire(lender: Lender, named: str) -> pb2.DeleteConnectionResponse:
    return await lender.credentials.DeleteConnection(
        pb2.DeleteConnectionRequest(connection_id=named), metadata=bearer(lender.customer.key)
    )


async def state_of(lender: Lender, named: str) -> str:
    async with below(lender.mesh) as db:
        return str(
            await db.fetchval("SELECT state FROM connections WHERE connection_id = $1", named)
        )


@pytest.mark.promise("P-22")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, TRANSACTIONS + 1))
async def test_a_deletion_that_ends_anywhere_goes_on_from_there(
    parts: Parts, lender: Lender, provider: ProviderDouble, at: int, after: bool
) -> None:
    named = await lender.authorized()
    family = list(provider.state.refresh_tokens.values())[-1].family
    await lender.bind(await lender.deployment(), named)
    dying = parts.deletion(DyingDatabase(parts.database, parts.settings, at, after))
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    with pytest.raises(KilledError):
        await dying.delete(tenant, key, ConnectionId(named))
    # From its first step on nothing is vended.
    assert (await state_of(lender, named) == "active") == (at == 1 and not after)
    deleted = await delete_over_the_wire(lender, named)
    assert (deleted.revocation, deleted.bindings_ended) == (pb2.REVOCATION_REVOKED, 1)
    assert family.revoked
    assert await state_of(lender, named) == "deleted"


async def test_a_deletion_whose_keys_cannot_be_ended_now_goes_on_when_it_is_repeated(
    parts: Parts, lender: Lender
) -> None:
    named = await lender.authorized()
    failing = FailingRegistry(parts.mesh, UnavailableError("auth is away"))
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    revoked = len(parts.gateway.revoked)
    deletion = parts.deletion(parts.database, failing)
    with pytest.raises(UnavailableError):
        await deletion.delete(tenant, key, ConnectionId(named))
    assert await state_of(lender, named) == "deleting"
    asked = len(parts.gateway.revoked)
    assert asked > revoked
    await deletion.delete(tenant, key, ConnectionId(named))
    # What the provider made of it was written down, and it was left alone.
    assert len(parts.gateway.revoked) == asked
    assert await state_of(lender, named) == "deleted"


async def test_while_a_connection_goes_nothing_of_it_changes(parts: Parts, lender: Lender) -> None:
    named = await lender.authorized()
    static = await lender.connection()
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE connections SET state = 'deleting' WHERE connection_id = ANY($1)",
            [named, static],
        )
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_NOT_ACTIVE"):
        await lender.started(connection_id=named, provider="", name="")
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_NOT_ACTIVE"):
        await lender.credentials.UpdateConnection(
            pb2.UpdateConnectionRequest(connection_id=static, name="x"),
            metadata=bearer(lender.customer.key),
        )
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await lender.bind(await lender.deployment(), static)


async def test_a_provider_that_hangs_keeps_no_deletion_from_its_end(
    parts: Parts, lender: Lender, provider: ProviderDouble
) -> None:
    named = await lender.authorized()
    answered = asyncio.Event()
    provider.next("/revoke", hangs(answered))
    deletion = replace(parts, within=timedelta(seconds=0.2)).deletion(parts.database)
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    deleted = await deletion.delete(tenant, key, ConnectionId(named))
    answered.set()
    assert deleted.revoked.revocation is Revocation.FAILED
    assert "Loopback" in deleted.revoked.advice
    assert await state_of(lender, named) == "deleted"


async def test_a_static_connection_that_was_broken_is_mended_by_another_credential(
    parts: Parts, lender: Lender
) -> None:
    named = await lender.connection()
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE connections SET state = 'needs_reauthorization', state_reason = 'unreadable'"
            " WHERE connection_id = $1",
            named,
        )

    async def updated(**fields: Any) -> pb2.Connection:
        answer = await lender.credentials.UpdateConnection(
            pb2.UpdateConnectionRequest(connection_id=named, **fields),
            metadata=bearer(lender.customer.key),
        )
        return answer.connection

    broken = pb2.CONNECTION_STATE_NEEDS_REAUTHORIZATION
    assert (await updated(name="Renamed")).state == broken
    mended = await updated(static_token=pb2.StaticToken(token="another"))
    assert (mended.name, mended.state) == ("Renamed", pb2.CONNECTION_STATE_ACTIVE)
    assert mended.state_reason == pb2.STATE_REASON_UNSPECIFIED


@pytest.mark.promise("P-22")
async def test_what_is_revoked_is_what_a_refresh_under_way_brings(
    parts: Parts, lender: Lender
) -> None:
    named = await lender.authorized()
    tenant, connection = TenantId(lender.customer.tenant_id), ConnectionId(named)
    cipher = await parts.data_keys.cipher(tenant)
    before = len(parts.gateway.revoked)
    async with parts.locks.hold(connection, PATIENCE):
        deleting = asyncio.create_task(
            parts.deletion(parts.database).delete(tenant, Bearer(lender.customer.key), connection)
        )
        async with asyncio.timeout(PATIENCE.total_seconds()):
            while await state_of(lender, named) != "deleting":
                await asyncio.sleep(0.01)
        newest = cipher.seal(refresh_place(connection), "newest")
        async with below(parts.mesh) as db:
            await db.execute(
                "UPDATE connections SET sealed_refresh_token = $2 WHERE connection_id = $1",
                named,
                newest,
            )
        assert len(parts.gateway.revoked) == before
    await deleting
    assert parts.gateway.revoked[before] == "newest"


async def test_after_an_interrupted_refresh_nobody_claims_that_all_is_revoked(
    parts: Parts, lender: Lender
) -> None:
    named = await lender.authorized()
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE connections SET refresh_attempt = 'lost', refresh_started_at = now()"
            " WHERE connection_id = $1",
            named,
        )
    deleted = await delete_over_the_wire(lender, named)
    assert deleted.revocation == pb2.REVOCATION_FAILED
    assert "interrupted" in deleted.advice


async def test_what_cannot_be_decrypted_goes_too(parts: Parts, lender: Lender) -> None:
    named = await lender.authorized()
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE connections SET sealed_refresh_token = '\\x0102' WHERE connection_id = $1",
            named,
        )
    deleted = await delete_over_the_wire(lender, named)
    assert deleted.revocation == pb2.REVOCATION_FAILED
    assert "decrypted" in deleted.advice
    assert await state_of(lender, named) == "deleted"


def new(request_id: str) -> NewConnection:
    kept = KeptSecret(ConnectionKind.STATIC_TOKEN, "static")
    return NewConnection(
        request_id, "github", "Bot", exclusive=False, parameters={}, credential=kept
    )


async def test_a_connection_that_auth_does_not_know_yet_is_made_known_when_it_is_asked_for_again(
    parts: Parts, lender: Lender
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    failing = FailingRegistry(parts.mesh, UnavailableError("auth is away"))
    with pytest.raises(UnavailableError):
        await parts.connections(failing).create(tenant, key, new("r"))
    (half,) = await parts.connections().page(tenant, None, None, 9)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await lender.connection_key(half.connection_id)
    made = await parts.connections().create(tenant, key, new("r"))
    assert made.connection_id == half.connection_id
    assert (await lender.connection_key(half.connection_id)).key


async def results(*calls: Any) -> tuple[list[Any], list[BaseException]]:
    """Returns what calls at once gave, and what they failed with."""
    given = await asyncio.gather(*calls, return_exceptions=True)
    failed = [one for one in given if isinstance(one, BaseException)]
    return [one for one in given if not isinstance(one, BaseException)], failed


async def test_a_tenant_has_no_more_connections_than_its_limit_also_when_many_are_made_at_once(
    parts: Parts, lender: Lender
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    connections = parts.connections(most=2)
    made, failed = await results(
        *(connections.create(tenant, key, new(fresh_id())) for _ in range(6))
    )
    assert len(made) == 2
    assert {type(error) for error in failed} == {LimitExceededError}
    # Who is deleted counts no more.
    await delete_over_the_wire(lender, made[0].connection_id)
    await connections.create(tenant, key, new(fresh_id()))
    with pytest.raises(LimitExceededError):
        await connections.create(tenant, key, new(fresh_id()))


def wanted(deployment: str, connection: str, alias: str) -> WantedBinding:
    return WantedBinding(
        DeploymentId(deployment), ConnectionId(connection), alias, (), None, replace=False
    )


async def test_a_deployment_has_no_more_bindings_than_its_limit_also_when_many_come_at_once(
    parts: Parts, lender: Lender
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    to, lent = await lender.deployment(), await lender.connection()
    bindings = Bindings(parts.database, parts.registry, per_deployment=2)
    made, failed = await results(
        *(bindings.bind(tenant, key, wanted(to, lent, alias)) for alias in "abcdef")
    )
    assert len(made) == 2
    assert {type(error) for error in failed} == {LimitExceededError}
    # One that is over counts no more.
    async with below(parts.mesh) as db:
        await db.execute(
            "UPDATE bindings SET expires_at = now() WHERE binding_id = $1", made[0].binding_id
        )
    await bindings.bind(tenant, key, wanted(to, lent, "z"))


async def test_a_deployment_that_is_retired_meanwhile_gets_nothing(
    parts: Parts, lender: Lender
) -> None:
    tenant, key = TenantId(lender.customer.tenant_id), Bearer(lender.customer.key)
    to, lent = await lender.deployment(), await lender.connection()
    gone: BulkheadError = NotFoundError("deployment")
    # It was there when auth was asked first, and its release found no row of it here.
    registry = FailingRegistry(parts.mesh, gone, at=2)
    bindings = Bindings(parts.database, registry, per_deployment=9)
    with pytest.raises(NotFoundError):
        await bindings.bind(tenant, key, wanted(to, lent, "a"))
    assert await bindings.page(tenant, None, None, None, 9) == []
