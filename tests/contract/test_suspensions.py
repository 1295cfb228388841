"""Suspended deployments over the wire: nothing is vended to them until they are resumed."""

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.shared.ids import new_deployment_id
from tests.borrowers import Borrower, borrower, reason
from tests.canaries import STATIC_TOKEN
from tests.mesh import Mesh, bearer
from tests.refusals import expect_refused

Item = pb2.VendItem


@pytest.fixture
async def own(mesh: Mesh) -> Borrower:
    return await borrower(mesh)


def stub(mesh: Mesh) -> CredentialsServiceStub:
    """credentials, as the provisioner calls it."""
    return mesh.stub(CredentialsServiceStub, "credentials", "provisioner")


async def suspend(own: Borrower, deployment_id: str, key: str = "") -> None:
    await stub(own.mesh).SuspendDeployment(
        pb2.SuspendDeploymentRequest(deployment_id=deployment_id),
        metadata=bearer(key or own.customer.key),
    )


async def resume(own: Borrower, deployment_id: str, key: str = "") -> None:
    await stub(own.mesh).ResumeDeployment(
        pb2.ResumeDeploymentRequest(deployment_id=deployment_id),
        metadata=bearer(key or own.customer.key),
    )


async def test_nothing_is_vended_to_a_suspended_deployment_until_it_is_resumed(
    own: Borrower,
) -> None:
    connection = await own.static()
    await own.bind(connection, "mine")
    sibling = await borrower(own.mesh, own.customer)
    await sibling.bind(connection, "mine")
    job = await own.mesh.job_key(own.customer)
    for _ in range(2):
        await suspend(own, own.deployment_id, job)
    results = await own.vend(Item(alias="mine"), Item(provider="github"), Item(alias="nobody"))
    assert [reason(each.refusal) for each in results] == ["DEPLOYMENT_SUSPENDED"] * 3
    # Neither its siblings nor the connection's own keys are concerned.
    assert (await sibling.token("mine")).token == STATIC_TOKEN
    (by_key,) = await own.vend(Item(), key=await own.connection_key(connection))
    assert by_key.token.token == STATIC_TOKEN
    for _ in range(2):
        await resume(own, own.deployment_id, job)
    assert (await own.token("mine")).token == STATIC_TOKEN
    assert await own.reason("nobody") == "BINDING_MISSING"


async def test_a_deployment_that_nothing_was_lent_to_yet_is_suspended_too(own: Borrower) -> None:
    await suspend(own, own.deployment_id)
    assert await own.reason("mine") == "DEPLOYMENT_SUSPENDED"
    await own.bind(await own.static(), "mine")
    assert await own.reason("mine") == "DEPLOYMENT_SUSPENDED"
    await resume(own, own.deployment_id)
    assert (await own.token("mine")).token == STATIC_TOKEN


@pytest.mark.promise("P-41")
async def test_nobody_suspends_or_resumes_what_is_another_tenants(own: Borrower) -> None:
    await own.bind(await own.static(), "mine")
    attacker = await borrower(own.mesh)
    named = (own.deployment_id, new_deployment_id(), "none")
    for key in (attacker.customer.key, await own.mesh.job_key(attacker.customer)):
        for each in named:
            with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
                await suspend(attacker, each, key)
    assert (await own.token("mine")).token == STATIC_TOKEN
    await suspend(own, own.deployment_id)
    for each in named:
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await resume(attacker, each)
    assert await own.reason("mine") == "DEPLOYMENT_SUSPENDED"
