"""What services encrypt: their databases with two tenants' ciphertexts in every sealed column."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub

from services.shared.crypto import KeyEncryptionKeys, Place, TenantCipher
from services.shared.data_keys import DataKeys
from services.shared.ids import TenantId
from services.shared.keyring import open_keyring
from services.shared.keyring.settings import KeyringSettings
from services.shared.postgres import Database, open_database
from services.shared.settings import PostgresSettings
from tests.databases import SERVICES
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble
from tests.providers import LOOPBACK, OWN_REDIRECT, allowed

SEALED: Final = "sealed"
WRAPPED: Final = "wrapped"
ENCRYPTING: Final = ("credentials", "provisioner")
COLUMNS: Final = """
    SELECT table_name, column_name, domain_name FROM information_schema.columns
    WHERE table_schema = 'public' AND (domain_name = ANY($1) OR udt_name = 'bytea')
    ORDER BY table_name, column_name
"""
_PRIMARY_KEY = """
    SELECT column_name FROM information_schema.table_constraints
    JOIN information_schema.key_column_usage USING (constraint_name, table_schema, table_name)
    WHERE constraint_type = 'PRIMARY KEY' AND table_schema = 'public' AND table_name = $1
    ORDER BY ordinal_position
"""


@dataclass(frozen=True)
class Kept:
    """One ciphertext and where it is."""

    tenant: str
    place: Place
    sealed: bytes


@dataclass(frozen=True)
class Vault:
    """The database of a service, the data keys of its tenants, and whose they are."""

    database: Database
    keks: KeyEncryptionKeys
    data_keys: DataKeys
    tenants: tuple[Customer, Customer]

    async def ciphers(self) -> dict[str, TenantCipher]:
        """Returns the tenants' ciphers."""
        ids = [TenantId(tenant.tenant_id) for tenant in self.tenants]
        return {tenant: await self.data_keys.cipher(tenant) for tenant in ids}

    async def columns(self, domain: str) -> list[tuple[str, str]]:
        """Returns tables and columns of that type."""
        rows = await self.database.pool.fetch(COLUMNS, [domain])
        return [(row[0], row[1]) for row in rows if row["domain_name"] == domain]

    async def kept(self) -> list[Kept]:
        """Returns everything that is sealed for the two tenants."""
        columns = await self.columns(SEALED)
        return [one for table, column in columns for one in await self._kept(table, column)]

    async def _kept(self, table: str, column: str) -> list[Kept]:
        async with self.database.service() as connection:
            names = [row[0] for row in await connection.fetch(_PRIMARY_KEY, table)]
            key = " || '/' || ".join(f'"{name}"' for name in names)
            rows = await connection.fetch(
                f'SELECT tenant_id, {key} AS row, "{column}" AS sealed FROM "{table}"'
                f' WHERE "{column}" IS NOT NULL AND tenant_id = ANY($1)',
                [tenant.tenant_id for tenant in self.tenants],
            )
        return [Kept(row[0], Place(table, row[1], column), row[2]) for row in rows]


@asynccontextmanager
async def open_vault(
    mesh: Mesh, service: str, tenants: tuple[Customer, Customer]
) -> AsyncIterator[Vault]:
    """Yields what `service` has of the tenants."""
    settings = mesh.settings[service]
    assert isinstance(settings, PostgresSettings)
    assert isinstance(settings, KeyringSettings)
    migrations = SERVICES / service / "migrations"
    async with (
        open_database(settings, service, migrations) as database,
        open_keyring(settings) as keks,
    ):
        yield Vault(database, keks, DataKeys(database, keks), tenants)


async def fill_credentials(mesh: Mesh, tenant: Customer, provider: ProviderDouble) -> None:
    """Has the tenant keep two of everything that credentials encrypts, where there can be two."""
    stub = mesh.stub(CredentialsServiceStub, "credentials")
    presented = bearer(tenant.key)
    await stub.SetWebhook(
        credentials_pb2.SetWebhookRequest(url="https://hooks.example"), metadata=presented
    )
    for number in range(2):
        await stub.CreateConnection(
            credentials_pb2.CreateConnectionRequest(
                request_id=fresh_id(),
                provider="github",
                name="static",
                static_token=credentials_pb2.StaticToken(token=f"{tenant.tenant_id}-{number}"),
            ),
            metadata=presented,
        )
        begun = await stub.StartAuthorization(_asked("allowed", provider), metadata=presented)
        state, code = await allowed(begun.authorization_url)
        await stub.CompleteAuthorization(
            credentials_pb2.CompleteAuthorizationRequest(state=state, code=code),
            metadata=presented,
        )
        # Once more, and nobody allows it: what it needs to end stays.
        await stub.StartAuthorization(_asked("asked", provider), metadata=presented)


def _asked(name: str, provider: ProviderDouble) -> credentials_pb2.StartAuthorizationRequest:
    """Returns a request with an OAuth client of the tenant's own."""
    return credentials_pb2.StartAuthorizationRequest(
        request_id=fresh_id(),
        provider=LOOPBACK,
        name=name,
        redirect_url=OWN_REDIRECT,
        client_id=provider.client.client_id,
        client_secret=provider.client.client_secret,
    )


async def fill_provisioner(mesh: Mesh, tenant: Customer) -> None:
    """Has the tenant keep two of everything that the provisioner encrypts."""
    stub = mesh.stub(ProvisionerServiceStub, "provisioner")
    for _ in range(2):
        deployment = await mesh.deployment(tenant, database=False, mcp=False, bootstrap_admin=True)
        for number in range(2):
            await stub.PutSecret(
                provisioner_pb2.PutSecretRequest(
                    deployment_id=deployment.deployment_id,
                    name=f"SECRET_{number}",
                    value=f"{deployment.deployment_id}-{number}",
                ),
                metadata=bearer(tenant.key),
            )
