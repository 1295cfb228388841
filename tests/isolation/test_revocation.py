"""What a service remembers of keys, and how soon it forgets."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.channel import open_channel
from services.shared.errors import UnavailableError
from services.shared.key_resolver import KeyResolver, watching
from services.shared.keyformat import digest, new_key
from services.shared.principal import KeyKind
from tests.mesh import Customer, Mesh, bearer

# Shorter than an answer is remembered for.
PATIENCE_SECONDS = 20
StartMesh = Callable[..., AbstractAsyncContextManager[Mesh]]


class Counted:
    """auth's own stub, and how often it was asked."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.batches: list[int] = []

    async def ResolveKeys(self, request: pb2.ResolveKeysRequest) -> Any:  # noqa: N802
        self.batches.append(len(request.digests))
        return await self._stub.ResolveKeys(request)

    async def AcknowledgeRevocations(  # noqa: N802
        self,
        request: pb2.AcknowledgeRevocationsRequest,
        timeout: float,  # noqa: ASYNC109 as the stub has it
    ) -> Any:
        return await self._stub.AcknowledgeRevocations(request, timeout=timeout)

    def WatchRevocations(self, request: pb2.WatchRevocationsRequest) -> Any:  # noqa: N802
        return self._stub.WatchRevocations(request)


@asynccontextmanager
async def resolving(mesh: Mesh) -> AsyncIterator[tuple[KeyResolver, Counted]]:
    """Yields a resolver as the services have it, and the count of its questions."""
    settings = mesh.settings["ratelimit"]
    async with open_channel(settings, "auth", settings.auth_target) as channel:
        counted = Counted(AuthServiceStub(channel))
        async with watching(KeyResolver(counted)) as resolver:  # type: ignore[arg-type]
            yield resolver, counted


async def remembered(resolver: KeyResolver, counted: Counted, key: str) -> None:
    """Returns once the key is answered from memory."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            before = len(counted.batches)
            assert await resolver.resolve(digest(key)) is not None
            if len(counted.batches) == before:
                return
            await asyncio.sleep(0.05)


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
    async with resolving(mesh) as (resolver, counted):
        await remembered(resolver, counted, customer.key)
        other = await mesh.key(customer)
        counted.batches.clear()
        answers = await asyncio.gather(*(resolver.resolve(digest(other.key)) for _ in range(100)))
    assert {answer.key_id for answer in answers if answer} == {other.key_id}
    assert counted.batches == [1]


async def test_many_different_keys_travel_as_few_batches(mesh: Mesh) -> None:
    async with resolving(mesh) as (resolver, counted):
        digests = [digest(new_key(KeyKind.TENANT)) for _ in range(600)]
        assert await resolver.resolve_all(digests) == [None] * 600
    assert sum(counted.batches) == 600
    assert len(counted.batches) <= 4


async def test_a_revoked_key_is_forgotten_long_before_it_is_too_old(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    async with resolving(mesh) as (resolver, counted):
        await remembered(resolver, counted, key.key)
        await revoke(mesh, customer, key.key_id)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await resolver.resolve(digest(key.key)) is not None:
                await asyncio.sleep(0)


async def test_when_auth_is_away_nothing_remembered_is_trusted_past_the_fence(
    start_mesh: StartMesh,
) -> None:
    async with start_mesh({}, ("auth", "ratelimit")) as own:
        customer = await own.customer()
        async with resolving(own) as (resolver, counted):
            await remembered(resolver, counted, customer.key)
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
