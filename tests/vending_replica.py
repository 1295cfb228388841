"""Vending without a mesh around it: replicas over one database, and grants that are lent in it."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.files import write_private
from services.credentials import connection_store
from services.credentials.assembly import Needs, open_vending
from services.credentials.domain import ConnectionKind, ConnectionState, Grant, OAuthClient
from services.credentials.grants import keep_grant
from services.credentials.lending import Asked
from services.credentials.ports import AuditRecord
from services.credentials.providers.clients import load_clients
from services.credentials.providers.files import load_catalogue
from services.credentials.providers.gateway import HttpGateway
from services.credentials.providers.outbound import open_outbound
from services.credentials.refresh.flights import Refreshes
from services.credentials.refresh.locks import RefreshLocks
from services.credentials.refresh.terms import RefreshObserver, Unobserved, Want
from services.credentials.settings import Settings
from services.credentials.supply import Outcome
from services.credentials.vending import Presented, Vending
from services.shared.data_keys import DataKeys
from services.shared.errors import BulkheadError
from services.shared.ids import (
    ConnectionId,
    TenantId,
    new_binding_id,
    new_connection_id,
    new_deployment_id,
    new_key_id,
    new_tenant_id,
)
from services.shared.keyring import open_keyring
from services.shared.postgres import Database, open_database
from services.shared.principal import KeyKind, Plan, Principal
from services.shared.settings import PostgresSettings
from tests.databases import SERVICES
from tests.provider_double import ProviderDouble
from tests.providers import OWN_REDIRECT, allowed

NAME = "loopback"
GRANTED = ("read", "write")
_MIGRATIONS = SERVICES / "credentials" / "migrations"
# One that the provider's answers are awaited for, unless a test is about that.
_ANSWER_SECONDS = 20.0


@dataclass
class Ledger:
    """An audit trail in memory."""

    records: list[AuditRecord] = field(default_factory=list)

    async def record(self, records: Sequence[AuditRecord]) -> Sequence[bool]:
        """Returns that each is written."""
        self.records += records
        return [True] * len(records)


@dataclass(frozen=True, slots=True)
class Lease:
    """A connection that is lent to one deployment."""

    tenant_id: TenantId
    connection_id: ConnectionId
    principal: Principal

    @property
    def want(self) -> Want:
        """All that was granted."""
        return Want(self.tenant_id, self.connection_id, NAME)


@dataclass(frozen=True, slots=True)
class Replica:
    """One process's worth of vending."""

    database: Database
    data_keys: DataKeys
    vending: Vending
    refreshes: Refreshes
    locks: RefreshLocks
    gateway: HttpGateway

    async def vend(self, lease: Lease) -> str:
        """Returns the token of the connection that is lent.

        Raises:
            BulkheadError: it is refused.
        """
        (outcome,) = await self.outcomes(lease, 1)
        if isinstance(outcome, BulkheadError):
            raise outcome
        return outcome.fresh.token

    async def outcomes(self, lease: Lease, number: int) -> list[Outcome]:
        """Returns what becomes of so many items of one call."""
        presented = Presented(lease.principal, bytes(32), "edge", "")
        return await self.vending.vend(presented, [Asked("own", "", "a test")] * number)

    async def expire(self, lease: Lease, left: str = "10 seconds") -> None:
        """Lets so much be left of the token's life."""
        await self.execute(
            "UPDATE access_tokens SET expires_at = now() + $2::text::interval,"
            " issued_at = now() - interval '1 hour' WHERE connection_id = $1",
            lease.connection_id,
            left,
        )

    async def settle(self, lease: Lease) -> None:
        """Lets it be long ago that a refresh was interrupted, or put off."""
        await self.execute(
            "UPDATE connections SET refresh_started_at = refresh_started_at - interval '1 hour',"
            " next_refresh_at = NULL WHERE connection_id = $1",
            lease.connection_id,
        )

    async def refusal(self, lease: Lease) -> BulkheadError:
        """Returns why nothing is vended."""
        (outcome,) = await self.outcomes(lease, 1)
        assert isinstance(outcome, BulkheadError)
        return outcome

    async def state(self, lease: Lease) -> tuple[str, str | None, bool]:
        """Returns state and reason, and whether a refresh is marked as under way."""
        async with self.database.service() as db:
            row = await db.fetchrow(
                "SELECT state, state_reason, refresh_attempt IS NOT NULL FROM connections"
                " WHERE connection_id = $1",
                lease.connection_id,
            )
        assert row is not None
        return row[0], row[1], row[2]

    async def execute(self, statement: str, *values: Any) -> None:
        """Does to the tables what no code of the service does."""
        async with self.database.service() as db:
            await db.execute(statement, *values)


def replica_settings(
    home: Path,
    provider: ProviderDouble,
    database: PostgresSettings,
    *,
    introspects: bool = False,
    rotation: str = "rotates",
    **others: Any,
) -> Settings:
    """Returns settings for replicas that know the provider, whose files are put into `home`."""
    folder = home / "providers"
    folder.mkdir(exist_ok=True)
    declared = provider.provider_yaml(NAME, introspects=introspects, rotation=rotation)
    (folder / f"{NAME}.yaml").write_text(declared)
    values = {
        "providers_folder": folder,
        "oauth_clients_file": write_private(
            home / "clients.yaml", provider.server.clients_yaml(NAME)
        ),
        "keyring_file": home / "keyring",
        "allow_private_targets": True,
        "provider_timeout_seconds": _ANSWER_SECONDS,
    }
    return Settings(**(database.model_dump() | values | others))


@asynccontextmanager
async def replica(
    settings: Settings,
    observer: RefreshObserver | None = None,
    ledger: Ledger | None = None,
) -> AsyncIterator[Replica]:
    """Yields a replica of its own."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        database = await enter(open_database(settings, "credentials", _MIGRATIONS))
        locks = RefreshLocks(await enter(open_database(settings, "credentials", _MIGRATIONS)))
        data_keys = DataKeys(database, await enter(open_keyring(settings)))
        catalogue = load_catalogue(settings.providers_folder, private_targets=True)
        clients = load_clients(settings.oauth_clients_file, catalogue)
        gateway = HttpGateway(await enter(open_outbound(settings)))
        needs = Needs(
            database,
            data_keys,
            catalogue,
            clients,
            gateway,
            ledger or Ledger(),
            locks,
            observer or Unobserved(),
        )
        parts = await enter(open_vending(settings, needs))
        yield Replica(database, data_keys, parts.vending, parts.refreshes, locks, gateway)


async def lease(replica: Replica, settings: Settings, provider: ProviderDouble) -> Lease:
    """Returns a connection of a new tenant, allowed by a person, lent to a new deployment."""
    tenant, connection = new_tenant_id(), new_connection_id()
    cipher = await replica.data_keys.cipher(tenant)
    row = connection_store.NewRow(
        connection_id=connection,
        request_id=connection,
        request_digest=b"",
        name="ours",
        provider=NAME,
        kind=ConnectionKind.AUTHORIZATION_CODE,
        exclusive=False,
        parameters={},
        state=ConnectionState.ACTIVE,
    )
    grant = await _granted(replica.gateway, settings, provider)
    async with replica.database.tenant(tenant) as db:
        await connection_store.insert(db, tenant, row)
        await keep_grant(db, cipher, tenant, connection, grant, asked=GRANTED)
    return await _lent(replica, tenant, connection)


async def _granted(gateway: HttpGateway, settings: Settings, provider: ProviderDouble) -> Grant:
    known = load_catalogue(settings.providers_folder, private_targets=True).get(NAME)
    assert known is not None
    client = OAuthClient(provider.client.client_id, provider.client.client_secret)
    verifier = secrets.token_urlsafe(48)
    url = gateway.authorization_url(
        known,
        client,
        {},
        redirect_url=OWN_REDIRECT,
        state="any",
        verifier=verifier,
        scopes=GRANTED,
    )
    _, code = await allowed(url)
    return await gateway.exchange(
        known, client, {}, redirect_url=OWN_REDIRECT, code=code, verifier=verifier
    )


async def _lent(replica: Replica, tenant: TenantId, connection: ConnectionId) -> Lease:
    deployment = new_deployment_id()
    await replica.execute(
        "INSERT INTO deployments (deployment_id, tenant_id) VALUES ($1, $2)", deployment, tenant
    )
    await replica.execute(
        "INSERT INTO bindings (binding_id, tenant_id, deployment_id, connection_id, exclusive,"
        " alias) VALUES ($1, $2, $3, $4, false, 'own')",
        new_binding_id(),
        tenant,
        deployment,
        connection,
    )
    principal = Principal(
        key_id=new_key_id(),
        kind=KeyKind.DEPLOYMENT,
        tenant_id=tenant,
        deployment_id=deployment,
        scopes=frozenset({"tokens:read"}),
        plan=Plan.PRO,
    )
    return Lease(tenant, connection, principal)
