"""What watchers of revocations say and are told, and what a revocation says of them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.ids import new_deployment_id
from services.shared.postgres import connect
from tests.conftest import StartMesh
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused


async def acknowledge(
    mesh: Mesh, watcher_id: str, sequence: int, **fields: Any
) -> pb2.AcknowledgeRevocationsResponse:
    return await mesh.stub(AuthServiceStub, "auth", "ratelimit").AcknowledgeRevocations(
        pb2.AcknowledgeRevocationsRequest(watcher_id=watcher_id, sequence=sequence, **fields)
    )


async def revoke(mesh: Mesh, customer: Customer, key_id: str) -> pb2.RevokeKeyResponse:
    return await mesh.stub(AuthServiceStub, "auth").RevokeKey(
        pb2.RevokeKeyRequest(key_id=key_id), metadata=bearer(customer.key)
    )


async def test_a_watcher_is_told_what_it_has_not_heard_of_and_leased_a_second(
    mesh: Mesh,
) -> None:
    customer, watcher_id = await mesh.customer(), fresh_id()
    first, second = await mesh.key(customer), await mesh.key(customer)
    known = (await acknowledge(mesh, watcher_id, 0)).sequence
    await revoke(mesh, customer, first.key_id)
    await revoke(mesh, customer, second.key_id)
    told = await acknowledge(mesh, watcher_id, known)
    assert not told.forget_all
    assert told.lease.ToTimedelta() == timedelta(seconds=1)
    numbers = [each.sequence for each in told.revocations]
    assert numbers == list(range(known + 1, told.sequence + 1))
    named = [key_id for each in told.revocations for key_id in each.key_ids]
    assert {first.key_id, second.key_id} <= set(named)
    assert not (await acknowledge(mesh, watcher_id, told.sequence)).revocations


async def test_who_knows_of_revocations_that_auth_does_not_know_forgets_everything(
    mesh: Mesh,
) -> None:
    answer = await acknowledge(mesh, fresh_id(), 2**40)
    assert answer.forget_all
    assert answer.sequence < 2**40


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("watcher_id", {"watcher_id": "w" * 15}),
        ("watcher_id", {"watcher_id": "w" * 65}),
        ("watcher_id", {"watcher_id": "w" * 15 + "\n" + "w"}),
        ("sequence", {"sequence": -1}),
        ("used_key_ids", {"used_key_ids": ["key"] * 1_001}),
        ("used_key_ids", {"used_key_ids": [""]}),
    ],
)
async def test_an_acknowledgement_with_a_bad_field_is_refused_by_name(
    mesh: Mesh, field: str, fields: dict[str, Any]
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        given: dict[str, Any] = {"watcher_id": fresh_id(), "sequence": 0} | fields
        await acknowledge(mesh, **given)


@pytest.mark.promise("P-37")
async def test_a_revocation_returns_when_every_watcher_has_said_that_it_forgot(
    start_mesh: StartMesh,
) -> None:
    async with start_mesh({"auth": {"fence": timedelta(seconds=10)}}, ("auth",)) as own:
        customer, watcher_id = await own.customer(), fresh_id()
        key = await own.key(customer)
        known = (await acknowledge(own, watcher_id, 0)).sequence
        revoking = asyncio.create_task(revoke(own, customer, key.key_id))
        while (await acknowledge(own, watcher_id, known)).sequence == known:
            assert not revoking.done()
        assert not revoking.done()
        await acknowledge(own, watcher_id, known + 1)
        effect = (await revoking).effect
    assert (effect.watchers_acknowledged, effect.watchers_fenced) == (1, 0)


@pytest.mark.promise("P-37")
async def test_a_silent_watcher_is_waited_for_until_its_lease_has_run_out(
    start_mesh: StartMesh,
) -> None:
    async with start_mesh({"auth": {"log_level": "info"}}, ("auth",)) as own:
        customer = await own.customer()
        async with asyncio.timeout(PATIENCE_SECONDS):
            # On a slow machine the lease may have run out before it was looked at.
            while (revoked := await revoked_in_silence(own, customer)).effect.watchers_fenced == 0:
                continue
        assert (revoked.effect.watchers_acknowledged, revoked.effect.watchers_fenced) == (0, 1)
        # The first time stands; the second waits for the same, which is there.
        again = await revoke(own, customer, revoked.key_id)
    assert again.revoke_time == revoked.revoke_time
    assert again.effect.watchers_fenced == 0


async def revoked_in_silence(mesh: Mesh, customer: Customer) -> pb2.RevokeKeyResponse:
    """Revokes a key beside a watcher that says nothing any more."""
    key = await mesh.key(customer)
    before = datetime.now(UTC)
    await acknowledge(mesh, fresh_id(), 0)
    revoked = await revoke(mesh, customer, key.key_id)
    # Postgres runs on this machine: one clock.
    effective_at = revoked.effect.effective_at.ToDatetime(UTC)
    assert before + timedelta(seconds=1) <= effective_at <= datetime.now(UTC)
    return revoked


@pytest.mark.promise("P-37")
async def test_repeating_a_revocation_waits_as_the_first_call_does(start_mesh: StartMesh) -> None:
    async with start_mesh({"auth": {"fence": timedelta(seconds=10)}}, ("auth",)) as own:
        customer, watcher_id = await own.customer(), fresh_id()
        key = await own.key(customer)
        known = (await acknowledge(own, watcher_id, 0)).sequence
        calls = [asyncio.create_task(revoke(own, customer, key.key_id)) for _ in range(5)]
        while (await acknowledge(own, watcher_id, known)).sequence == known:
            await asyncio.sleep(0)
        assert not any(call.done() for call in calls)
        await acknowledge(own, watcher_id, known + 1)
        answers = await asyncio.gather(*calls)
    assert len({answer.revoke_time.ToNanoseconds() for answer in answers}) == 1
    assert {answer.effect.watchers_acknowledged for answer in answers} == {1}


@pytest.mark.promise("P-37")
async def test_a_revocation_that_is_not_known_to_hold_says_so_and_can_be_repeated(
    start_mesh: StartMesh,
) -> None:
    settings = {"fence": timedelta(seconds=0.5)}
    async with start_mesh({"auth": settings}, ("auth",)) as own:
        customer, watcher_id = await own.customer(), fresh_id()
        key = await own.key(customer)
        told = await acknowledge(own, watcher_id, 0)
        # Nobody reads who watches, as if the database were away after the commit.
        connection = await connect(own.settings["auth"])  # type: ignore[arg-type]
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE revocation_watchers")
                with expect_refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE") as refusal:
                    await revoke(own, customer, key.key_id)
        finally:
            await connection.close()
        assert "it is done" in str(refusal.value.details())
        await acknowledge(own, watcher_id, told.sequence + 1)
        again = await revoke(own, customer, key.key_id)
    assert again.effect.watchers_fenced == 0


async def test_retiring_a_deployment_without_keys_has_no_effect_to_wait_for(mesh: Mesh) -> None:
    customer, deployment_id = await mesh.customer(), new_deployment_id()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    await provisioner.RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    request = pb2.RetireDeploymentRequest(deployment_id=deployment_id)
    retired = await provisioner.RetireDeployment(request, metadata=bearer(customer.key))
    assert (retired.revoked_keys, retired.HasField("effect")) == (0, False)


@pytest.mark.promise("P-37")
async def test_retiring_a_deployment_again_waits_for_the_same_effect(mesh: Mesh) -> None:
    customer, deployment_id = await mesh.customer(), new_deployment_id()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    await provisioner.RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    await mesh.key(customer, deployment_id)
    request = pb2.RetireDeploymentRequest(deployment_id=deployment_id)
    for revoked_keys in (1, 0):
        retired = await provisioner.RetireDeployment(request, metadata=bearer(customer.key))
        assert retired.revoked_keys == revoked_keys
        assert retired.effect.HasField("effective_at")
