"""The keyring over the wire: the operator's alone, rotated while tenants go on."""

import asyncio

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import (
    CredentialsServiceStub,
    KeyringServiceStub,
)

from tests.canaries import canary
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused

PATIENCE_SECONDS = 30.0
TOKEN = canary("kept-through-rotations")


@pytest.fixture
def keyring(mesh: Mesh) -> KeyringServiceStub:
    return mesh.stub(KeyringServiceStub, "credentials")


async def status(mesh: Mesh, keyring: KeyringServiceStub) -> pb2.GetKeyringResponse:
    return await keyring.GetKeyring(pb2.GetKeyringRequest(), metadata=bearer(mesh.operator_key))


def _left(keyring: pb2.GetKeyringResponse) -> int:
    return keyring.data_keys_to_wrap - keyring.data_keys_unreadable


async def rotated(mesh: Mesh, keyring: KeyringServiceStub) -> str:
    """Returns the key that is current once every data key is under it."""
    answer = await keyring.RotateKeyring(
        pb2.RotateKeyringRequest(), metadata=bearer(mesh.operator_key)
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        while _left(await status(mesh, keyring)):
            await asyncio.sleep(0.02)
    return answer.current_key_encryption_key_id


async def lent(mesh: Mesh, customer: Customer) -> str:
    """Returns the key of a connection that the customer has."""
    made = await mesh.stub(CredentialsServiceStub, "credentials").CreateConnection(
        pb2.CreateConnectionRequest(
            request_id=fresh_id(),
            provider="github",
            name="bot",
            static_token=pb2.StaticToken(token=TOKEN),
        ),
        metadata=bearer(customer.key),
    )
    issued = await mesh.stub(AuthServiceStub, "auth").IssueKey(
        auth_pb2.IssueKeyRequest(
            request_id=fresh_id(), connection_id=made.connection.connection_id
        ),
        metadata=bearer(customer.key),
    )
    return issued.key


async def vended(mesh: Mesh, key: str) -> str:
    answer = await mesh.stub(CredentialsServiceStub, "credentials").Vend(
        pb2.VendRequest(items=[pb2.VendItem(purpose="a test")]), metadata=bearer(key)
    )
    return answer.results[0].token.token


@pytest.mark.promise("P-09")
async def test_a_rotation_goes_on_by_itself_while_tokens_are_vended(
    mesh: Mesh, keyring: KeyringServiceStub
) -> None:
    key = await lent(mesh, await mesh.customer())
    before = await status(mesh, keyring)
    rotating = asyncio.create_task(rotated(mesh, keyring))
    vends = 0
    while not rotating.done() or not vends:
        assert await vended(mesh, key) == TOKEN
        vends += 1
    after = await status(mesh, keyring)
    old, new = (one.key_encryption_keys[0] for one in (before, after))
    assert (old.current, new.current) == (True, True)
    assert await rotating == new.key_encryption_key_id != old.key_encryption_key_id
    assert after.holder == "file"
    assert (after.data_keys_to_wrap, after.data_keys_unreadable) == (0, 0)
    assert new.data_keys == sum(one.data_keys for one in after.key_encryption_keys) > 0
    assert await vended(mesh, key) == TOKEN


async def test_an_old_key_is_destroyed_once_nothing_is_under_it(
    mesh: Mesh, keyring: KeyringServiceStub
) -> None:
    key = await lent(mesh, await mesh.customer())
    current = (await status(mesh, keyring)).key_encryption_keys[0].key_encryption_key_id
    request = pb2.DestroyKeyEncryptionKeyRequest(key_encryption_key_id=current)
    with expect_refused("FAILED_PRECONDITION", "KEY_ENCRYPTION_KEY_IN_USE"):
        await keyring.DestroyKeyEncryptionKey(request, metadata=bearer(mesh.operator_key))
    await rotated(mesh, keyring)
    for _ in range(2):
        await keyring.DestroyKeyEncryptionKey(request, metadata=bearer(mesh.operator_key))
    left = [one.key_encryption_key_id for one in (await status(mesh, keyring)).key_encryption_keys]
    assert current not in left
    assert await vended(mesh, key) == TOKEN


async def test_a_key_that_is_not_there_or_not_named_is_refused(
    mesh: Mesh, keyring: KeyringServiceStub
) -> None:
    for kek_id, code, reason in (
        ("kek_nobody", "NOT_FOUND", "RESOURCE_NOT_FOUND"),
        ("", "INVALID_ARGUMENT", "FIELD_INVALID"),
        ("k" * 129, "INVALID_ARGUMENT", "FIELD_INVALID"),
    ):
        request = pb2.DestroyKeyEncryptionKeyRequest(key_encryption_key_id=kek_id)
        with expect_refused(code, reason):
            await keyring.DestroyKeyEncryptionKey(request, metadata=bearer(mesh.operator_key))


async def test_a_tenant_neither_sees_nor_turns_the_keyring(
    mesh: Mesh, keyring: KeyringServiceStub
) -> None:
    presented = bearer((await mesh.customer()).key)
    before = (await status(mesh, keyring)).key_encryption_keys[0].key_encryption_key_id
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await keyring.GetKeyring(pb2.GetKeyringRequest(), metadata=presented)
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await keyring.RotateKeyring(pb2.RotateKeyringRequest(), metadata=presented)
    request = pb2.DestroyKeyEncryptionKeyRequest(key_encryption_key_id=before)
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await keyring.DestroyKeyEncryptionKey(request, metadata=presented)
    assert (await status(mesh, keyring)).key_encryption_keys[0].key_encryption_key_id == before
