"""Ciphertexts open where they were put, and nowhere else (P-09).

The columns are found by their types, so that one that is added is attacked as the others are, or
this fails because nothing is in it.
"""

import itertools
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import error_reason_pb2
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.shared.crypto import (
    DataKeyId,
    KekId,
    KeyBinding,
    Place,
    TenantCipher,
    UnreadableError,
)
from services.shared.ids import TenantId
from services.shared.postgres import Connection, connect
from services.shared.settings import PostgresSettings
from tests.mesh import ALL, Customer, Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble
from tests.vaults import (
    COLUMNS,
    ENCRYPTING,
    SEALED,
    WRAPPED,
    Vault,
    fill_credentials,
    fill_provisioner,
    open_vault,
)

# Bytes of services that encrypt, which are not encrypted, or otherwise, and why they may be so.
NOT_SECRET = {
    "credentials": {
        ("connections", "request_digest"): "a hash of a request under the tenant's data key",
        ("authorizations", "request_digest"): "the same",
        ("authorizations", "state_digest"): "SHA-256 of 256 random bits that are used once",
    },
    "provisioner": {
        ("certificates", "token_digest"): "SHA-256 of 256 random bits",
        ("operations", "sealed_key"): "sealed for the operation, under the master secret",
        ("pgqueuer", "payload"): "a deployment's or a tenant's id",
        ("tombstones", "sealed_key"): "as that of operations: the tenant's data key is shredded",
        ("tombstones", "token_digest"): "SHA-256 of at least 32 characters that are random",
    },
}


def postgres_of(mesh: Mesh, service: str) -> PostgresSettings:
    settings = mesh.settings[service]
    assert isinstance(settings, PostgresSettings)
    return settings


@pytest.fixture(scope="module")
async def vaults(mesh: Mesh, provider: ProviderDouble) -> AsyncIterator[Mapping[str, Vault]]:
    """Of each service that encrypts: two tenants, with two rows of whatever there can be two of."""
    tenants = await mesh.customer(), await mesh.customer()
    for tenant in tenants:
        await fill_credentials(mesh, tenant, provider)
        await fill_provisioner(mesh, tenant)
    async with AsyncExitStack() as stack:
        yield {
            service: await stack.enter_async_context(open_vault(mesh, service, tenants))
            for service in ENCRYPTING
        }


@pytest.fixture(params=ENCRYPTING)
def vault(vaults: Mapping[str, Vault], request: pytest.FixtureRequest) -> Vault:
    return vaults[request.param]


@pytest.mark.promise("P-09")
async def test_what_is_encrypted_is_attacked_here_and_everything_else_is_accounted_for(
    mesh: Mesh,
) -> None:
    for service in ALL:
        connection = await connect(postgres_of(mesh, service))
        try:
            rows = await connection.fetch(COLUMNS, [SEALED, WRAPPED])
        finally:
            await connection.close()
        encrypted = {(row[0], row[1]) for row in rows if row["domain_name"] in {SEALED, WRAPPED}}
        # Who encrypts elsewhere attacks it here too.
        assert bool(encrypted) == (service in ENCRYPTING), (service, encrypted)
        if encrypted:
            plain = {(row[0], row[1]) for row in rows} - encrypted
            assert plain == set(NOT_SECRET[service]), "encrypt it, or say why it need not be"


@pytest.mark.promise("P-09")
async def test_every_encrypted_column_has_rows_to_attack(vault: Vault) -> None:
    kept = await vault.kept()
    for table, column in await vault.columns(SEALED):
        rows = [one for one in kept if (one.place.table, one.place.column) == (table, column)]
        alone = all(one.place.row == one.tenant for one in rows)
        for tenant in vault.tenants:
            count = sum(one.tenant == tenant.tenant_id for one in rows)
            assert count >= (1 if alone and rows else 2), (
                f"{table}.{column} holds {count} ciphertexts of a tenant: make its filler put"
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
    mesh: Mesh, vaults: Mapping[str, Vault], name: str
) -> None:
    """The same through the API: what is vended is one's own, or nothing."""
    vault = vaults["credentials"]
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
