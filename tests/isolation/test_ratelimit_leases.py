"""Leases over the wire, and the client that admits calls out of them."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub

from services.shared.access import open_key_resolver
from services.shared.errors import UnavailableError
from services.shared.ids import new_deployment_id
from services.shared.keyformat import new_key
from services.shared.leases import LeasedLimits, open_leased_limits
from services.shared.limits import CoalescedLimits
from services.shared.principal import KeyKind
from tests.conftest import StartMesh
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import expect_refused

PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.005
LEASE_ID = f"{new_deployment_id()}.2026-11.{'a' * 24}"


def door(mesh: Mesh, peer: str = "app_proxy") -> RatelimitServiceStub:
    return mesh.stub(RatelimitServiceStub, "ratelimit", peer=peer)


async def deployment_key(mesh: Mesh, customer: Customer) -> auth_pb.IssueKeyResponse:
    """Returns a key of a deployment that auth knows; ratelimit needs no more of it."""
    deployment_id = new_deployment_id()
    await mesh.stub(AuthServiceStub, "auth", peer="provisioner").RegisterDeployment(
        auth_pb.RegisterDeploymentRequest(deployment_id=deployment_id),
        metadata=bearer(customer.key),
    )
    return await mesh.key(customer, deployment_id)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def wants(*keys: str, calls: int = 5) -> pb.LeaseRequest:
    return pb.LeaseRequest(
        items=[pb.LeaseItem(key_digest=digest(key), calls=calls) for key in keys]
    )


def returns(*items: tuple[str, int]) -> pb.ReturnLeaseRequest:
    return pb.ReturnLeaseRequest(
        items=[pb.ReturnLeaseItem(lease_id=name, unused=unused) for name, unused in items]
    )


async def used(mesh: Mesh, key: str) -> int:
    stub = mesh.stub(RatelimitServiceStub, "ratelimit")
    return (await stub.GetUsage(pb.GetUsageRequest(), metadata=bearer(key))).used


@pytest.mark.promise("P-05")
async def test_a_lease_counts_until_it_is_given_back_and_comes_back_once(mesh: Mesh) -> None:
    async def attempt() -> bool:
        key = (await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_FREE))).key
        (lease,) = (await door(mesh).Lease(wants(key, calls=15))).results
        assert (lease.decision, lease.calls) == (pb.DECISION_ALLOWED, 15)
        assert timedelta(0) < lease.lifetime.ToTimedelta() <= timedelta(seconds=1)
        assert not lease.HasField("retry_after")
        assert await used(mesh, key) == 15
        answer = await door(mesh).ReturnLease(returns((lease.lease_id, 11), (lease.lease_id, 11)))
        assert answer.returned[1] == 0
        assert await used(mesh, key) == 15 - answer.returned[0]
        return answer.returned[0] == 11

    await _until(attempt)


@pytest.mark.promise("P-05")
async def test_a_lease_grants_what_there_is_and_then_says_when_to_come_back(mesh: Mesh) -> None:
    key = (await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_FREE))).key
    first, second = (await door(mesh).Lease(wants(key, key, calls=100))).results
    assert (first.decision, first.calls) == (pb.DECISION_ALLOWED, 20)
    assert (second.decision, second.calls) == (pb.DECISION_BURST_EXCEEDED, 0)
    assert second.retry_after.ToTimedelta() > timedelta(0)
    assert (second.lease_id, second.HasField("lifetime")) == ("", False)


@pytest.mark.promise("P-04")
async def test_only_valid_deployment_keys_are_granted_anything(mesh: Mesh) -> None:
    customer = await mesh.customer()
    key = (await deployment_key(mesh, customer)).key
    unknown = new_key(KeyKind.DEPLOYMENT)
    answer = await door(mesh).Lease(wants(unknown, key, customer.key, mesh.operator_key))
    assert [result.decision for result in answer.results] == [
        pb.DECISION_KEY_INVALID,
        pb.DECISION_ALLOWED,
        pb.DECISION_KEY_INVALID,
        pb.DECISION_KEY_INVALID,
    ]
    assert [result.calls for result in answer.results] == [0, 5, 0, 0]


async def test_what_is_no_lease_gives_nothing_back(mesh: Mesh) -> None:
    answer = await door(mesh).ReturnLease(returns(("", 1), ("x", 1), (LEASE_ID, 10_000)))
    assert list(answer.returned) == [0, 0, 0]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.LeaseRequest(), "items"),
        (wants(*["key"] * 257), "items"),
        (pb.LeaseRequest(items=[pb.LeaseItem(key_digest=b"x", calls=1)]), "items[0].key_digest"),
        (wants("key", calls=0), "items[0].calls"),
        (wants("key", calls=10_001), "items[0].calls"),
    ],
)
async def test_a_lease_that_cannot_be_decided_is_named(
    mesh: Mesh, request_: pb.LeaseRequest, field: str
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await door(mesh).Lease(request_)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.ReturnLeaseRequest(), "items"),
        (returns(*[(LEASE_ID, 1)] * 257), "items"),
        (returns((LEASE_ID, -1)), "items[0].unused"),
        (returns((LEASE_ID, 10_001)), "items[0].unused"),
    ],
)
async def test_a_return_that_cannot_be_counted_is_named(
    mesh: Mesh, request_: pb.ReturnLeaseRequest, field: str
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await door(mesh).ReturnLease(request_)


async def test_nobody_but_the_front_door_leases_and_gives_back(mesh: Mesh) -> None:
    key = (await deployment_key(mesh, await mesh.customer())).key
    for peer in ("edge", "provisioner", "auth"):
        with expect_refused("PERMISSION_DENIED", "PEER_REFUSED"):
            await door(mesh, peer).Lease(wants(key))
        with expect_refused("PERMISSION_DENIED", "PEER_REFUSED"):
            await door(mesh, peer).ReturnLease(returns((LEASE_ID, 1)))
    assert await used(mesh, key) == 0


@pytest.mark.promise("P-05")
async def test_under_demand_calls_are_admitted_out_of_leases_and_every_one_is_counted(
    mesh: Mesh,
) -> None:
    async def attempt() -> bool:
        key = (await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_SCALE))).key
        async with _leased(mesh) as limits:
            admitted = await _until_held(limits, key)
            held = limits.held(digest(key))
            admitted += await _admitted(limits, key)
            out_of_lease = limits.held(digest(key)) == held - 1
            await asyncio.gather(*(_admitted(limits, key) for _ in range(50)))
            admitted += 50
        counted = await used(mesh, key)
        assert counted >= admitted
        return out_of_lease and counted == admitted

    await _until(attempt)


@pytest.mark.promise("P-05")
async def test_what_was_not_used_comes_back_when_the_lease_ends(mesh: Mesh) -> None:
    async def attempt() -> bool:
        key = (await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_SCALE))).key
        async with _leased(mesh) as limits:
            admitted = await _until_held(limits, key)

            async def nothing_is_held() -> bool:
                return limits.held(digest(key)) == 0

            await _until(nothing_is_held)
        counted = await used(mesh, key)
        assert counted >= admitted
        return counted == admitted

    await _until(attempt)


@pytest.mark.promise("P-37")
async def test_a_revoked_keys_lease_is_not_usable_and_comes_back(mesh: Mesh) -> None:
    customer = await mesh.customer(auth_pb.PLAN_SCALE)

    async def attempt() -> bool:
        issued = await deployment_key(mesh, customer)
        other = (await mesh.key(customer, issued.deployment_id)).key
        async with _leased(mesh) as limits:
            admitted = await _until_held(limits, issued.key)
            held = limits.held(digest(issued.key))
            await mesh.stub(AuthServiceStub, "auth").RevokeKey(
                auth_pb.RevokeKeyRequest(key_id=issued.key_id), metadata=bearer(customer.key)
            )
            result = await limits.acquire(digest(issued.key))
            assert result.decision == pb.DECISION_KEY_INVALID
            assert limits.held(digest(issued.key)) == 0
        counted = await used(mesh, other)
        assert counted >= admitted
        return held > 0 and counted == admitted

    await _until(attempt)


@pytest.mark.promise("P-05")
async def test_a_small_limit_is_never_leased(mesh: Mesh) -> None:
    """A part of a small burst that is held elsewhere would be calls refused for nothing."""
    key = (await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_FREE))).key
    async with _leased(mesh) as limits:
        results = []
        for _ in range(60):
            results.append(await limits.acquire(digest(key)))
            assert limits.held(digest(key)) == 0
    admitted = [each for each in results if each.decision == pb.DECISION_ALLOWED]
    assert len(admitted) >= 20
    assert results[-1].HasField("retry_after") == (results[-1] not in admitted)
    assert await used(mesh, key) == len(admitted)


@pytest.mark.promise("P-05")
async def test_without_ratelimit_no_more_than_what_is_held_is_admitted(
    start_mesh: StartMesh,
) -> None:
    async with start_mesh({}, ("auth", "ratelimit")) as mesh:
        key = (await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_SCALE))).key
        async with _leased(mesh) as limits:
            await _until_held(limits, key)
            await mesh.stop("ratelimit")
            with pytest.raises(UnavailableError):
                await _until_refused(limits, key, at_most=limits.held(digest(key)))


async def _until_refused(limits: LeasedLimits, key: str, at_most: int) -> None:
    for _ in range(at_most + 1):
        await limits.acquire(digest(key))
    pytest.fail("more was admitted than was held")


@asynccontextmanager
async def _leased(mesh: Mesh) -> AsyncIterator[LeasedLimits]:
    async with open_key_resolver(mesh.channel("auth", "app_proxy")) as keys:
        coalesced = CoalescedLimits(mesh.channel("ratelimit", "app_proxy"))
        async with open_leased_limits(coalesced, keys.resolve) as limits:
            yield limits


async def _until_held(limits: LeasedLimits, key: str) -> int:
    """Returns how many calls were admitted until demand was high enough for a lease."""
    admitted = 0
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not limits.held(digest(key)):
            admitted += await _admitted(limits, key)
    return admitted


async def _admitted(limits: LeasedLimits, key: str) -> int:
    """Returns 1 once a call was admitted, having waited as told while it was not."""
    while True:
        result = await limits.acquire(digest(key))
        if result.decision == pb.DECISION_ALLOWED:
            return 1
        assert result.decision == pb.DECISION_BURST_EXCEEDED
        await asyncio.sleep(result.retry_after.ToTimedelta().total_seconds())


async def _until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Returns once it holds; an attempt that the machine held up for longer than a lease does not.

    A lease lasts for a second, and counts as used when it comes home half a second later.
    """
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():
            await asyncio.sleep(POLL_SECONDS)
