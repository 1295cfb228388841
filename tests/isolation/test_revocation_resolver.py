"""What a resolver may answer from memory, and whose earlier question it may share (P-37)."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from services.shared.ids import KeyId, TenantId, new_deployment_id
from services.shared.key_cache import KeyCache
from services.shared.key_resolver import KeyResolver
from services.shared.keyformat import digest
from services.shared.principal import KeyKind, Plan, Principal
from tests.isolation.watched_auth import Clock, Watched, remembered, resolving
from tests.mesh import PATIENCE_SECONDS, Customer, Mesh, bearer, fresh_id

pytestmark = pytest.mark.promise("P-37")
# Longer than any lease.
PAUSE_SECONDS = 5.0


async def revoke(mesh: Mesh, customer: Customer, key_id: str) -> pb2.RevokeKeyResponse:
    return await mesh.stub(AuthServiceStub, "auth").RevokeKey(
        pb2.RevokeKeyRequest(key_id=key_id), metadata=bearer(customer.key)
    )


async def leased(resolver: KeyResolver, watched: Watched, customer: Customer) -> None:
    """Returns once the resolver is leased trust, which shows in that it remembers."""
    await remembered(resolver, watched, customer.key)


async def until_asked_anew(resolver: KeyResolver, watched: Watched, key: str) -> None:
    """Returns once the key is not remembered."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        before = len(watched.batches)
        while len(watched.batches) == before:
            await resolver.resolve(digest(key))
            await asyncio.sleep(0)


async def test_an_answer_from_before_the_revocation_is_not_given_to_who_came_after(
    mesh: Mesh,
) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    async with resolving(mesh) as (resolver, watched):
        await leased(resolver, watched, customer)
        watched.answers.close()
        before = asyncio.create_task(resolver.resolve(digest(key.key)))
        await watched.answers.holds()
        await revoke(mesh, customer, key.key_id)
        after = asyncio.create_task(resolver.resolve(digest(key.key)))
        await asyncio.sleep(0)
        watched.answers.open()
        # It was asked when the key was valid.
        assert await before is not None
        assert await after is None


async def test_an_answer_from_before_the_revocation_is_not_remembered(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    async with resolving(mesh, Clock.stopped()) as (resolver, watched):
        await leased(resolver, watched, customer)
        watched.answers.close()
        before = asyncio.create_task(resolver.resolve(digest(key.key)))
        await watched.answers.holds()
        await revoke(mesh, customer, key.key_id)
        watched.answers.open()
        assert await before is not None
        assert await resolver.resolve(digest(key.key)) is None


async def test_an_earlier_question_is_shared_while_nothing_was_revoked(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    async with resolving(mesh, Clock.stopped()) as (resolver, watched):
        await leased(resolver, watched, customer)
        watched.answers.close()
        asking = len(watched.batches)
        tasks = [asyncio.create_task(resolver.resolve(digest(key.key)))]
        await watched.answers.holds()
        tasks += [asyncio.create_task(resolver.resolve(digest(key.key))) for _ in range(9)]
        await asyncio.sleep(0)
        watched.answers.open()
        answers = await asyncio.gather(*tasks)
    assert {answer.key_id for answer in answers if answer} == {key.key_id}
    # Other tests of this mesh may revoke something meanwhile: then those who came late ask anew.
    assert len(watched.batches) <= asking + 2


async def test_who_comes_without_a_lease_shares_no_question_that_was_asked_before(
    mesh: Mesh,
) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    clock = Clock.stopped()
    async with resolving(mesh, clock) as (resolver, watched):
        await leased(resolver, watched, customer)
        watched.answers.close()
        before = asyncio.create_task(resolver.resolve(digest(key.key)))
        await watched.answers.holds()
        # Cut off: it hears of nothing, and what it was told of comes late.
        watched.deaf = True
        watched.acknowledgements.close()
        clock.ahead += PAUSE_SECONDS
        await revoke(mesh, customer, key.key_id)
        after = [asyncio.create_task(resolver.resolve(digest(key.key))) for _ in range(20)]
        await watched.answers.holds(2)
        watched.answers.open()
        assert await before is not None
        assert set(await asyncio.gather(*after)) == {None}
        # Those twenty began before their question was asked: they asked it together.
        assert watched.batches[-1] == 1


async def test_a_lease_that_runs_out_on_the_way_makes_an_earlier_answer_worthless(
    mesh: Mesh,
) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    clock = Clock.stopped()
    async with resolving(mesh, clock) as (resolver, watched):
        await leased(resolver, watched, customer)
        watched.answers.close()
        before = asyncio.create_task(resolver.resolve(digest(key.key)))
        await watched.answers.holds()
        watched.deaf = True
        watched.acknowledgements.close()
        asking = len(watched.batches)
        after = asyncio.create_task(resolver.resolve(digest(key.key)))
        await asyncio.sleep(0)
        clock.ahead += PAUSE_SECONDS
        watched.answers.open()
        assert await before is not None
        assert await after is not None
    assert len(watched.batches) == asking + 1


async def test_a_process_that_wakes_up_trusts_nothing_that_it_remembers(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    clock = Clock.stopped()
    async with resolving(mesh, clock) as (resolver, watched):
        await remembered(resolver, watched, key.key)
        watched.deaf = True
        watched.acknowledgements.close()
        await watched.acknowledgements.holds()
        # The answer to what it had sent before it was paused lies there when it wakes up.
        clock.ahead += PAUSE_SECONDS
        await revoke(mesh, customer, key.key_id)
        await watched.acknowledgements.release()
        # By now that answer is worked through; the next one, which tells, is kept back.
        await watched.acknowledgements.holds()
        assert await resolver.resolve(digest(key.key)) is None


async def test_an_acknowledgement_tells_what_was_not_heard(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    async with resolving(mesh) as (resolver, watched):
        await remembered(resolver, watched, key.key)
        watched.deaf = True
        await revoke(mesh, customer, key.key_id)
        assert await resolver.resolve(digest(key.key)) is None


async def test_a_gap_in_what_is_heard_drops_all_that_is_remembered(mesh: Mesh) -> None:
    customer = await mesh.customer()
    unheard, heard = await mesh.key(customer), await mesh.key(customer)
    # No lease ever runs out, so it would trust what it remembers for ever.
    async with resolving(mesh, Clock.stopped()) as (resolver, watched):
        await remembered(resolver, watched, unheard.key)
        watched.acknowledgements.close()
        await watched.acknowledgements.holds()
        watched.deaf = True
        await revoke(mesh, customer, unheard.key_id)
        assert await resolver.resolve(digest(unheard.key)) is not None
        watched.deaf = False
        await revoke(mesh, customer, heard.key_id)
        await until_asked_anew(resolver, watched, unheard.key)
        assert await resolver.resolve(digest(unheard.key)) is None


async def test_a_key_that_expires_is_refused_from_memory(mesh: Mesh) -> None:
    customer = await mesh.customer()
    at = datetime.now(UTC) + timedelta(seconds=3)
    issued = await mesh.stub(AuthServiceStub, "auth").IssueKey(
        pb2.IssueKeyRequest(request_id=fresh_id(), expire_time=stamp(at)),
        metadata=bearer(customer.key),
    )
    async with resolving(mesh, Clock.stopped()) as (resolver, watched):
        await remembered(resolver, watched, issued.key)
        asking = len(watched.batches)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await resolver.resolve(digest(issued.key)) is not None:
                await asyncio.sleep(0.02)
        assert datetime.now(UTC) >= at
    assert len(watched.batches) == asking


async def test_what_changes_a_key_is_known_everywhere_when_it_returns(mesh: Mesh) -> None:
    customer = await mesh.customer(pb2.PLAN_FREE)
    auth = mesh.stub(AuthServiceStub, "auth")
    async with resolving(mesh) as (resolver, watched):
        await remembered(resolver, watched, customer.key)
        support = await auth.IssueSupportKey(
            pb2.IssueSupportKeyRequest(
                request_id=fresh_id(),
                tenant_id=customer.tenant_id,
                reason="another plan",
                scopes=["plan:write"],
            ),
            metadata=bearer(mesh.operator_key),
        )
        await auth.ChangePlan(
            pb2.ChangePlanRequest(plan=pb2.PLAN_SCALE), metadata=bearer(support.key)
        )
        assert (await resolved(resolver, customer.key)).plan is Plan.SCALE
        rotated = await auth.RotateKey(
            pb2.RotateKeyRequest(
                request_id=fresh_id(), key_id=customer.key_id, grace_period=Duration(seconds=3_600)
            ),
            metadata=bearer(customer.key),
        )
        ends_at = rotated.old_key_expire_time.ToDatetime(UTC)
        assert (await resolved(resolver, customer.key)).expires_at == ends_at


@pytest.mark.parametrize("end", ["rotate", "retire", "close"])
async def test_whatever_ends_a_key_has_ended_it_everywhere_when_it_returns(
    mesh: Mesh, end: str
) -> None:
    customer, deployment_id = await mesh.customer(), new_deployment_id()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    await provisioner.RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    key = await mesh.key(customer, deployment_id)
    job = await mesh.job_key(customer)
    ends: dict[str, Any] = {
        "rotate": lambda: provisioner.RotateKey(
            pb2.RotateKeyRequest(request_id=fresh_id(), key_id=key.key_id),
            metadata=bearer(customer.key),
        ),
        "retire": lambda: provisioner.RetireDeployment(
            pb2.RetireDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
        ),
        "close": lambda: provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(job)),
    }
    async with resolving(mesh) as (resolver, watched):
        await remembered(resolver, watched, key.key)
        await ends[end]()
        assert await resolver.resolve(digest(key.key)) is None


def test_a_key_that_was_given_another_secret_is_forgotten_under_both() -> None:
    cache = KeyCache(lambda: 0.0)
    principal = Principal(
        KeyId("key_1"), KeyKind.TENANT, TenantId("ten_1"), None, frozenset(), Plan.FREE
    )
    cache.put(b"first", principal)
    cache.put(b"second", principal)
    cache.forget(principal.key_id)
    assert cache.get(b"first", 0.0) is None
    assert cache.get(b"second", 0.0) is None


def test_only_so_many_keys_are_remembered_and_the_oldest_go_first() -> None:
    cache = KeyCache(lambda: 0.0, most=2)
    for number in range(3):
        cache.put(bytes([number]), None)
    assert [cache.get(bytes([number]), 0.0) is not None for number in range(3)] == [
        False,
        True,
        True,
    ]


def stamp(at: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(at)
    return message


async def resolved(resolver: KeyResolver, key: str) -> Principal:
    principal = await resolver.resolve(digest(key))
    assert principal is not None
    return principal


async def test_who_is_asked_for_no_key_is_not_leased_until_it_is_asked_again(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    clock = Clock.stopped()
    async with resolving(mesh, clock) as (resolver, watched):
        await leased(resolver, watched, customer)
        await resolver.resolve(digest(key.key))
        clock.ahead += 2 * PAUSE_SECONDS
        # Each beat of the stream is one that it could have acknowledged.
        async with asyncio.timeout(PATIENCE_SECONDS):
            last, quiet = watched.acknowledged, 0
            while quiet < 3:
                heard = watched.heard
                while watched.heard == heard:
                    await asyncio.sleep(0.01)
                quiet = quiet + 1 if watched.acknowledged == last else 0
                last = watched.acknowledged
        await revoke(mesh, customer, key.key_id)
        assert await resolver.resolve(digest(key.key)) is None
        await leased(resolver, watched, customer)
    assert watched.acknowledged > last
