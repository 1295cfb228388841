"""What a service remembers of keys, and how soon it forgets."""

import asyncio

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.errors import UnavailableError
from services.shared.key_resolver import KeyResolver
from services.shared.keyformat import digest, new_key
from services.shared.principal import KeyKind
from tests.conftest import StartMesh
from tests.isolation.watched_auth import remembered, resolving
from tests.mesh import Customer, Mesh, bearer

# Shorter than an answer is remembered for.
PATIENCE_SECONDS = 20


async def resolved_for_ever(resolver: KeyResolver, key: str) -> None:
    while True:
        await resolver.resolve(digest(key))
        await asyncio.sleep(0.02)


async def revoke(mesh: Mesh, customer: Customer, key_id: str) -> None:
    await mesh.stub(AuthServiceStub, "auth").RevokeKey(
        pb2.RevokeKeyRequest(key_id=key_id), metadata=bearer(customer.key)
    )


async def test_a_key_that_many_ask_for_at_once_is_asked_for_once(mesh: Mesh) -> None:
    customer = await mesh.customer()
    async with resolving(mesh) as (resolver, watched):
        await remembered(resolver, watched, customer.key)
        other = await mesh.key(customer)
        watched.batches.clear()
        answers = await asyncio.gather(*(resolver.resolve(digest(other.key)) for _ in range(100)))
    assert {answer.key_id for answer in answers if answer} == {other.key_id}
    assert watched.batches == [1]


async def test_many_different_keys_travel_as_few_batches(mesh: Mesh) -> None:
    async with resolving(mesh) as (resolver, watched):
        digests = [digest(new_key(KeyKind.TENANT)) for _ in range(600)]
        assert await resolver.resolve_all(digests) == [None] * 600
    assert sum(watched.batches) == 600
    assert len(watched.batches) <= 4


@pytest.mark.promise("P-37")
async def test_a_revoked_key_is_forgotten_when_the_revocation_returns(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    async with resolving(mesh) as (resolver, watched):
        await remembered(resolver, watched, key.key)
        await revoke(mesh, customer, key.key_id)
        assert await resolver.resolve(digest(key.key)) is None


async def test_when_auth_is_away_nothing_remembered_is_trusted_past_the_fence(
    start_mesh: StartMesh,
) -> None:
    async with start_mesh({}, ("auth", "ratelimit")) as own:
        customer = await own.customer()
        async with resolving(own) as (resolver, watched):
            await remembered(resolver, watched, customer.key)
            await own.stop("auth")
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(resolved_for_ever(resolver, customer.key), PATIENCE_SECONDS)
            await own.start("auth")
            async with asyncio.timeout(PATIENCE_SECONDS):
                while True:
                    try:
                        assert await resolver.resolve(digest(customer.key)) is not None
                        break
                    except UnavailableError:
                        await asyncio.sleep(0.05)
