"""The provisioner's keyring over the wire: its own, rotated while environments are read."""

import asyncio

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import (
    KeyringServiceStub as CredentialsKeyringStub,
)
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import (
    KeyringServiceStub,
    ProvisionerServiceStub,
)

from tests.canaries import canary
from tests.mesh import Mesh, bearer
from tests.refusals import expect_refused

PATIENCE_SECONDS = 30.0


@pytest.fixture
def keyring(mesh: Mesh) -> KeyringServiceStub:
    return mesh.stub(KeyringServiceStub, "provisioner")


async def status(mesh: Mesh, keyring: KeyringServiceStub) -> pb2.GetKeyringResponse:
    return await keyring.GetKeyring(pb2.GetKeyringRequest(), metadata=bearer(mesh.operator_key))


async def rotated(mesh: Mesh, keyring: KeyringServiceStub) -> str:
    """Returns the key that is current once every data key is under it."""
    answer = await keyring.RotateKeyring(
        pb2.RotateKeyringRequest(), metadata=bearer(mesh.operator_key)
    )
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (await status(mesh, keyring)).data_keys_to_wrap:
            await asyncio.sleep(0.02)
    return answer.current_key_encryption_key_id


@pytest.mark.promise("P-09")
async def test_environments_are_read_through_a_rotation_and_after_the_old_key_is_destroyed(
    mesh: Mesh, keyring: KeyringServiceStub
) -> None:
    customer, secret = await mesh.customer(), canary("kept-through-rotations")
    made = await mesh.deployment(customer, database=False, mcp=False, bootstrap_admin=True)
    stub = mesh.stub(ProvisionerServiceStub, "provisioner")
    await stub.PutSecret(
        pb2.PutSecretRequest(deployment_id=made.deployment_id, name="TOKEN", value=secret),
        metadata=bearer(customer.key),
    )
    key = await mesh.key(customer, made.deployment_id, ("environment:read",))

    async def read() -> str:
        found = await stub.GetEnvironment(pb2.GetEnvironmentRequest(), metadata=bearer(key.key))
        return next(each.value for each in found.variables if each.name == "TOKEN")

    beside = mesh.stub(CredentialsKeyringStub, "credentials")
    others = credentials_pb2.GetKeyringRequest()
    untouched = await beside.GetKeyring(others, metadata=bearer(mesh.operator_key))
    (old, *_) = (await status(mesh, keyring)).key_encryption_keys
    destroying = pb2.DestroyKeyEncryptionKeyRequest(key_encryption_key_id=old.key_encryption_key_id)
    with expect_refused("FAILED_PRECONDITION", "KEY_ENCRYPTION_KEY_IN_USE"):
        await keyring.DestroyKeyEncryptionKey(destroying, metadata=bearer(mesh.operator_key))
    rotating = asyncio.create_task(rotated(mesh, keyring))
    while not rotating.done():
        assert await read() == secret
    assert await rotating != old.key_encryption_key_id
    for _ in range(2):
        await keyring.DestroyKeyEncryptionKey(destroying, metadata=bearer(mesh.operator_key))
    after = await status(mesh, keyring)
    assert old.key_encryption_key_id not in [
        each.key_encryption_key_id for each in after.key_encryption_keys
    ]
    assert await read() == secret
    shown = await stub.RevealBootstrapAdmin(
        pb2.RevealBootstrapAdminRequest(deployment_id=made.deployment_id),
        metadata=bearer(customer.key),
    )
    assert shown.password
    assert await beside.GetKeyring(others, metadata=bearer(mesh.operator_key)) == untouched


async def test_a_tenant_neither_sees_nor_turns_the_provisioners_keyring(
    mesh: Mesh, keyring: KeyringServiceStub
) -> None:
    presented = bearer((await mesh.customer()).key)
    for calling in (
        keyring.GetKeyring(pb2.GetKeyringRequest(), metadata=presented),
        keyring.RotateKeyring(pb2.RotateKeyringRequest(), metadata=presented),
        keyring.DestroyKeyEncryptionKey(
            pb2.DestroyKeyEncryptionKeyRequest(key_encryption_key_id="kek_x"), metadata=presented
        ),
    ):
        with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
            await calling
