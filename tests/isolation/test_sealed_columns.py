"""Ciphertexts open where they were put, and nowhere else (P-09).

The columns are found by their types, so that one that is added is attacked as the others are, or
this fails because nothing is in it.
"""

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import error_reason_pb2
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.credentials.settings import Settings
from services.shared.crypto import (
    DataKeyId,
    KekId,
    KeyBinding,
    KeyEncryptionKeys,
    Place,
    TenantCipher,
    UnreadableError,
)
from services.shared.data_keys import DataKeys
from services.shared.ids import TenantId
from services.shared.keyring import open_keyring
from services.shared.postgres import Connection, Database, connect, open_database
from services.shared.settings import PostgresSettings
from tests.databases import SERVICES
from tests.mesh import ALL, Customer, Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble
from tests.providers import LOOPBACK, OWN_REDIRECT, allowed

SEALED, WRAPPED = "sealed", "wrapped"
# Bytes of credentials that are not encrypted, and why they need not be.
NOT_SECRET = {
    ("connections", "request_digest"): "a hash of a request under the tenant's data key",
    ("authorizations", "request_digest"): "the same",
    ("authorizations", "state_digest"): "SHA-256 of 256 random bits that are used once",
}
_COLUMNS = """
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
    """The database of credentials, the data keys of its tenants, and whose they are."""

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
        rows = await self.database.pool.fetch(_COLUMNS, [domain])
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


def postgres_of(mesh: Mesh, service: str) -> PostgresSettings:
    settings = mesh.settings[service]
    assert isinstance(settings, PostgresSettings)
    return settings


@pytest.fixture(scope="module")
async def vault(mesh: Mesh, provider: ProviderDouble) -> AsyncIterator[Vault]:
    """Two tenants, with two rows of everything that there can be two of."""
    tenants = await mesh.customer(), await mesh.customer()
    for tenant in tenants:
        await fill(mesh.stub(CredentialsServiceStub, "credentials"), tenant, provider)
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    async with AsyncExitStack() as stack:
        migrations = SERVICES / "credentials" / "migrations"
        database = await stack.enter_async_context(
            open_database(settings, "credentials", migrations)
        )
        keks = await stack.enter_async_context(open_keyring(settings))
        yield Vault(database, keks, DataKeys(database, keks), tenants)


async def fill(stub: CredentialsServiceStub, tenant: Customer, provider: ProviderDouble) -> None:
    presented = bearer(tenant.key)
    await stub.SetWebhook(pb2.SetWebhookRequest(url="https://hooks.example"), metadata=presented)
    for number in range(2):
        await stub.CreateConnection(
            pb2.CreateConnectionRequest(
                request_id=fresh_id(),
                provider="github",
                name="static",
                static_token=pb2.StaticToken(token=f"{tenant.tenant_id}-{number}"),
            ),
            metadata=presented,
        )
        begun = await stub.StartAuthorization(asked("allowed", provider), metadata=presented)
        state, code = await allowed(begun.authorization_url)
        await stub.CompleteAuthorization(
            pb2.CompleteAuthorizationRequest(state=state, code=code), metadata=presented
        )
        # Once more, and nobody allows it: what it needs to end stays.
        await stub.StartAuthorization(asked("asked", provider), metadata=presented)


def asked(name: str, provider: ProviderDouble) -> pb2.StartAuthorizationRequest:
    """Returns a request with an OAuth client of the tenant's own."""
    return pb2.StartAuthorizationRequest(
        request_id=fresh_id(),
        provider=LOOPBACK,
        name=name,
        redirect_url=OWN_REDIRECT,
        client_id=provider.client.client_id,
        client_secret=provider.client.client_secret,
    )


@pytest.mark.promise("P-09")
async def test_what_is_encrypted_is_in_credentials_alone_and_everything_else_is_accounted_for(
    mesh: Mesh,
) -> None:
    for service in ALL:
        connection = await connect(postgres_of(mesh, service))
        try:
            rows = await connection.fetch(_COLUMNS, [SEALED, WRAPPED])
        finally:
            await connection.close()
        encrypted = {(row[0], row[1]) for row in rows if row["domain_name"] in {SEALED, WRAPPED}}
        # Who encrypts elsewhere attacks it here too.
        assert bool(encrypted) == (service == "credentials"), (service, encrypted)
        if service == "credentials":
            plain = {(row[0], row[1]) for row in rows} - encrypted
            assert plain == set(NOT_SECRET), "encrypt it, or say why it need not be"


@pytest.mark.promise("P-09")
async def test_every_encrypted_column_has_rows_to_attack(vault: Vault) -> None:
    kept = await vault.kept()
    for table, column in await vault.columns(SEALED):
        rows = [one for one in kept if (one.place.table, one.place.column) == (table, column)]
        alone = all(one.place.row == one.tenant for one in rows)
        for tenant in vault.tenants:
            count = sum(one.tenant == tenant.tenant_id for one in rows)
            assert count >= (1 if alone and rows else 2), (
                f"{table}.{column} holds {count} ciphertexts of a tenant: make `fill` put"
                " two there, so that they can be swapped"
            )


@pytest.mark.promise("P-09")
async def test_no_ciphertext_opens_in_another_row_column_or_tenant(vault: Vault) -> None:
    kept, ciphers = await vault.kept(), await vault.ciphers()
    # Where they are they do open: it is their place that keeps them shut elsewhere.
    assert all(ciphers[one.tenant].open(one.place, one.sealed) for one in kept)
    for here, there in itertools.permutations(kept, 2):
        assert_unreadable(ciphers[here.tenant], here.place, there.sealed)
    # Whoever has the row of another tenant, and even its data key's id, lacks its data key.
    first, second = (ciphers[tenant.tenant_id] for tenant in vault.tenants)
    for one in kept:
        foreign = second if one.tenant == vault.tenants[0].tenant_id else first
        own = ciphers[one.tenant]
        assert_unreadable(foreign, one.place, one.sealed)
        renamed = one.sealed.replace(own.data_key_id.encode(), foreign.data_key_id.encode(), 1)
        assert renamed != one.sealed
        assert_unreadable(foreign, one.place, renamed)
        assert_unreadable(own, one.place, renamed)


@pytest.mark.promise("P-09")
async def test_no_changed_ciphertext_opens_anywhere(vault: Vault) -> None:
    ciphers = await vault.ciphers()
    for one in await vault.kept():
        cipher = ciphers[one.tenant]
        for changed in changes(one.sealed):
            assert_unreadable(cipher, one.place, changed)
        for place in (
            replace(one.place, table=f"{one.place.table}s"),
            replace(one.place, column=one.place.column[:-1]),
            replace(one.place, row=f"{one.place.row}/"),
            # The same characters, cut elsewhere.
            replace(
                one.place,
                table=one.place.table + one.place.row[0],
                row=one.place.row[1:],
            ),
        ):
            assert_unreadable(cipher, place, one.sealed)


def changes(sealed: bytes) -> Iterator[bytes]:
    """Every cut, every bit flipped in a byte of each part, and what is no ciphertext at all."""
    yield from (sealed[:length] for length in range(len(sealed)))
    for at in range(len(sealed)):
        yield sealed[:at] + bytes([sealed[at] ^ 1 << at % 8]) + sealed[at + 1 :]
    yield sealed + b"\0"
    yield b"\0" * len(sealed)


def assert_unreadable(cipher: TenantCipher, place: Place, sealed: bytes) -> None:
    with pytest.raises(UnreadableError) as refused:
        cipher.open(place, sealed)
    assert place.row not in str(refused.value)


@pytest.mark.promise("P-09")
async def test_no_wrapped_data_key_opens_for_another_tenant_or_under_another_key(
    vault: Vault,
) -> None:
    assert await vault.columns(WRAPPED) == [("data_keys", "wrapped_key")]
    async with vault.database.service() as connection:
        rows = await connection.fetch(
            "SELECT tenant_id, data_key_id, kek_id, wrapped_key FROM data_keys"
            " WHERE tenant_id = ANY($1)",
            [tenant.tenant_id for tenant in vault.tenants],
        )
    assert len(rows) == 2
    for here, there in itertools.permutations(rows, 2):
        bound = KeyBinding(TenantId(here["tenant_id"]), DataKeyId(here["data_key_id"]))
        kek, wrapped = KekId(here["kek_id"]), here["wrapped_key"]
        assert len(await vault.keks.unwrap(kek, wrapped, bound)) == 32
        attacks = [(kek, changed, bound) for changed in (there["wrapped_key"], *changes(wrapped))]
        attacks.append((kek, wrapped, replace(bound, tenant=TenantId(there["tenant_id"]))))
        attacks.append((kek, wrapped, replace(bound, data_key_id=DataKeyId(there["data_key_id"]))))
        attacks.append((KekId("kek_other"), wrapped, bound))
        for attacked in attacks:
            with pytest.raises(UnreadableError):
                await vault.keks.unwrap(*attacked)


@pytest.mark.promise("P-09")
@pytest.mark.parametrize("name", ["static", "allowed"])
async def test_a_vend_of_a_row_that_was_tampered_with_gives_nobodys_token(
    mesh: Mesh, vault: Vault, name: str
) -> None:
    """The same through the API: what is vended is one's own, or nothing."""
    table, column = {
        "static": ("connections", "sealed_secret"),
        "allowed": ("access_tokens", "sealed_token"),
    }[name]
    first, second = vault.tenants
    own, beside = await connections_of(mesh, first, name)
    foreign, _ = await connections_of(mesh, second, name)
    key = await connection_key(mesh, first, own)
    before = await vend(mesh, key)
    assert before.WhichOneof("outcome") == "token"
    async with vault.database.service() as connection:
        good = await sealed_of(connection, table, column, own)
        swapped = [await sealed_of(connection, table, column, other) for other in (beside, foreign)]
    flipped = good[:-1] + bytes([good[-1] ^ 1])
    try:
        for bad in (*swapped, good[:-1], flipped, b""):
            await put_sealed(vault, table, column, own, bad)
            result = await vend(mesh, key)
            assert result.WhichOneof("outcome") == "refusal"
            assert result.refusal.reason == error_reason_pb2.ERROR_REASON_CONNECTION_UNREADABLE, (
                result
            )
    finally:
        await put_sealed(vault, table, column, own, good)
    assert (await vend(mesh, key)).token.token == before.token.token


async def connections_of(mesh: Mesh, tenant: Customer, name: str) -> tuple[str, str]:
    listed = await mesh.stub(CredentialsServiceStub, "credentials").ListConnections(
        pb2.ListConnectionsRequest(), metadata=bearer(tenant.key)
    )
    first, second = (one.connection_id for one in listed.connections if one.name == name)
    return first, second


async def connection_key(mesh: Mesh, tenant: Customer, connection_id: str) -> str:
    issued = await mesh.stub(AuthServiceStub, "auth").IssueKey(
        auth_pb2.IssueKeyRequest(request_id=fresh_id(), connection_id=connection_id),
        metadata=bearer(tenant.key),
    )
    return str(issued.key)


async def vend(mesh: Mesh, key: str) -> pb2.VendResult:
    answer = await mesh.stub(CredentialsServiceStub, "credentials").Vend(
        pb2.VendRequest(items=[pb2.VendItem(purpose="a test")]), metadata=bearer(key)
    )
    (result,) = answer.results
    return result


async def sealed_of(connection: Connection, table: str, column: str, connection_id: str) -> bytes:
    sealed = await connection.fetchval(
        f"SELECT {column} FROM {table} WHERE connection_id = $1",
        connection_id,
    )
    assert isinstance(sealed, bytes)
    return sealed


async def put_sealed(
    vault: Vault, table: str, column: str, connection_id: str, sealed: bytes
) -> None:
    async with vault.database.service() as connection:
        await connection.execute(
            f"UPDATE {table} SET {column} = $2 WHERE connection_id = $1",
            connection_id,
            sealed,
        )
