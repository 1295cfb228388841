"""The limiter over the wire: each deployment by itself, nobody else's, and never open."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.valkey import valkey_server
from services.shared.ids import new_deployment_id
from services.shared.keyformat import new_key
from services.shared.principal import KeyKind
from tests.conftest import StartMesh
from tests.mesh import Customer, Mesh, bearer
from tests.refusals import expect_refused

SERVICE = "bulkhead.ratelimit.v1.RatelimitService"
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.02


def door(mesh: Mesh) -> RatelimitServiceStub:
    """ratelimit, as the front door's decision maker calls it."""
    return mesh.stub(RatelimitServiceStub, "ratelimit", peer="app_proxy")


def outside(mesh: Mesh) -> RatelimitServiceStub:
    """ratelimit, as anyone calls it through the front door."""
    return mesh.stub(RatelimitServiceStub, "ratelimit")


async def registered(mesh: Mesh, customer: Customer) -> str:
    """Returns a deployment of the customer that auth knows; ratelimit needs no more of it."""
    deployment_id = new_deployment_id()
    await mesh.stub(AuthServiceStub, "auth", peer="provisioner").RegisterDeployment(
        auth_pb.RegisterDeploymentRequest(deployment_id=deployment_id),
        metadata=bearer(customer.key),
    )
    return deployment_id


async def deployment_key(mesh: Mesh, customer: Customer) -> tuple[str, str]:
    """Returns a new deployment and a key of it."""
    deployment_id = await registered(mesh, customer)
    return deployment_id, (await mesh.key(customer, deployment_id)).key


def items(*keys: str, cost: int = 1) -> pb.AcquireRequest:
    return pb.AcquireRequest(
        items=[
            pb.AcquireItem(key_digest=hashlib.sha256(key.encode()).digest(), cost=cost)
            for key in keys
        ]
    )


async def take(mesh: Mesh, key: str, cost: int = 1) -> pb.AcquireResult:
    (result,) = (await door(mesh).Acquire(items(key, cost=cost))).results
    return result


async def usage(mesh: Mesh, key: str, deployment_id: str = "") -> pb.GetUsageResponse:
    return await outside(mesh).GetUsage(
        pb.GetUsageRequest(deployment_id=deployment_id), metadata=bearer(key)
    )


@pytest.mark.promise("P-05")
async def test_the_free_plan_holds_a_burst_of_20_and_says_when_to_come_back(mesh: Mesh) -> None:
    _, key = await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_FREE))
    response = await door(mesh).Acquire(items(*[key] * 25))
    decisions = [result.decision for result in response.results]
    assert decisions[:20] == [pb.DECISION_ALLOWED] * 20
    refusal = response.results[-1]
    assert refusal.decision == pb.DECISION_BURST_EXCEEDED
    assert 0 < refusal.retry_after.ToTimedelta().total_seconds() <= 0.1
    assert response.results[0].quota_remaining == 999
    assert not response.results[0].HasField("retry_after")


async def test_an_answer_tells_the_limits_and_when_they_are_whole_again(mesh: Mesh) -> None:
    _, key = await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_FREE))
    result = await take(mesh, key, 5)
    assert (result.burst, result.rate_per_second, result.quota) == (20, 10, 1_000)
    assert result.burst_reset.ToTimedelta() == timedelta(milliseconds=500)
    month_ends = (await usage(mesh, key)).reset_time.ToDatetime(UTC)
    reset_at = datetime.now(UTC) + result.quota_reset.ToTimedelta()
    assert abs((reset_at - month_ends).total_seconds()) < 60
    _, unlimited = await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_SCALE))
    result = await take(mesh, unlimited)
    assert not result.HasField("quota")
    assert result.HasField("quota_reset")


@pytest.mark.promise("P-05")
async def test_the_month_is_used_up_at_its_limit_and_refusals_burn_nothing(
    start_mesh: StartMesh,
) -> None:
    overrides = {"ratelimit": {"quota_free": 30, "burst_free": 1_000, "rate_free": 1_000}}
    async with start_mesh(overrides, ("auth", "ratelimit")) as mesh:
        deployment_id, key = await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_FREE))
        responses = await asyncio.gather(
            *(door(mesh).Acquire(items(*[key] * 9)) for _ in range(10))
        )
        results = [result for response in responses for result in response.results]
        allowed = [result for result in results if result.decision == pb.DECISION_ALLOWED]
        assert len(allowed) == 30
        refusal = await take(mesh, key)
        assert refusal.decision == pb.DECISION_QUOTA_EXCEEDED
        counted = await usage(mesh, key)
        assert (counted.deployment_id, counted.used, counted.remaining) == (deployment_id, 30, 0)
        waits_until = datetime.now(UTC) + refusal.retry_after.ToTimedelta()
        month_ends = counted.reset_time.ToDatetime(UTC)
        assert abs((waits_until - month_ends).total_seconds()) < 60


@pytest.mark.promise("P-05")
async def test_pro_and_scale_have_no_monthly_limit(mesh: Mesh) -> None:
    for plan, rate in ((auth_pb.PLAN_PRO, 100), (auth_pb.PLAN_SCALE, 1_000)):
        _, key = await deployment_key(mesh, await mesh.customer(plan))
        result = await take(mesh, key)
        assert result.decision == pb.DECISION_ALLOWED
        assert not result.HasField("quota_remaining")
        counted = await usage(mesh, key)
        assert (counted.used, counted.rate_per_second) == (1, rate)
        assert not counted.HasField("limit")


@pytest.mark.promise("P-05")
async def test_one_deployment_cannot_use_up_another_of_the_same_tenant(mesh: Mesh) -> None:
    customer = await mesh.customer(auth_pb.PLAN_FREE)
    _, loud = await deployment_key(mesh, customer)
    _, quiet = await deployment_key(mesh, customer)
    await door(mesh).Acquire(items(*[loud] * 100))
    assert (await take(mesh, quiet)).burst_remaining == 19
    assert (await usage(mesh, quiet)).used == 1


async def test_two_keys_of_one_deployment_share_its_limits(mesh: Mesh) -> None:
    customer = await mesh.customer(auth_pb.PLAN_FREE)
    deployment_id, first = await deployment_key(mesh, customer)
    second = (await mesh.key(customer, deployment_id)).key
    response = await door(mesh).Acquire(items(first, second, cost=15))
    assert [result.decision for result in response.results] == [
        pb.DECISION_ALLOWED,
        pb.DECISION_BURST_EXCEEDED,
    ]


@pytest.mark.promise("P-04")
async def test_only_valid_deployment_keys_are_decided_and_the_others_do_not_disturb(
    mesh: Mesh,
) -> None:
    customer = await mesh.customer()
    _, key = await deployment_key(mesh, customer)
    unknown = new_key(KeyKind.DEPLOYMENT)
    response = await door(mesh).Acquire(items(unknown, key, customer.key, mesh.operator_key, key))
    assert [result.decision for result in response.results] == [
        pb.DECISION_KEY_INVALID,
        pb.DECISION_ALLOWED,
        pb.DECISION_KEY_INVALID,
        pb.DECISION_KEY_INVALID,
        pb.DECISION_ALLOWED,
    ]
    assert (await usage(mesh, key)).used == 2


async def test_a_revoked_key_is_refused_long_before_its_answer_is_too_old(mesh: Mesh) -> None:
    customer = await mesh.customer()
    deployment_id = await registered(mesh, customer)
    issued = await mesh.key(customer, deployment_id)
    assert (await take(mesh, issued.key)).decision == pb.DECISION_ALLOWED
    await mesh.stub(AuthServiceStub, "auth").RevokeKey(
        auth_pb.RevokeKeyRequest(key_id=issued.key_id), metadata=bearer(customer.key)
    )

    async def is_refused() -> bool:
        return (await take(mesh, issued.key)).decision == pb.DECISION_KEY_INVALID

    await until(is_refused)


async def test_a_cost_of_nothing_looks_only(mesh: Mesh) -> None:
    _, key = await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_FREE))
    await take(mesh, key, 7)
    for _ in range(3):
        result = await take(mesh, key, 0)
        assert (result.decision, result.quota_remaining) == (pb.DECISION_ALLOWED, 993)
    assert (await usage(mesh, key)).used == 7


async def test_a_cost_over_the_burst_is_refused_without_a_wait(mesh: Mesh) -> None:
    _, key = await deployment_key(mesh, await mesh.customer(auth_pb.PLAN_FREE))
    result = await take(mesh, key, 21)
    assert result.decision == pb.DECISION_BURST_EXCEEDED
    assert not result.HasField("retry_after")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.AcquireRequest(), "items"),
        (items(*["key"] * 257), "items"),
        (pb.AcquireRequest(items=[pb.AcquireItem(key_digest=b"short")]), "items[0].key_digest"),
        (items("key", cost=-1), "items[0].cost"),
        (items("key", cost=1_000_001), "items[0].cost"),
    ],
)
async def test_an_item_that_cannot_be_decided_is_named(
    mesh: Mesh, request_: pb.AcquireRequest, field: str
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await door(mesh).Acquire(request_)


async def test_nobody_but_the_front_door_takes_calls(mesh: Mesh) -> None:
    _, key = await deployment_key(mesh, await mesh.customer())
    for peer in ("edge", "provisioner", "auth"):
        with expect_refused("PERMISSION_DENIED", "PEER_REFUSED"):
            await mesh.stub(RatelimitServiceStub, "ratelimit", peer=peer).Acquire(items(key))
    assert (await usage(mesh, key)).used == 0


async def test_a_tenant_reads_the_usage_of_its_deployment(mesh: Mesh) -> None:
    customer = await mesh.customer(auth_pb.PLAN_FREE)
    deployment_id, key = await deployment_key(mesh, customer)
    await take(mesh, key, 3)
    counted = await usage(mesh, customer.key, deployment_id)
    assert counted.month == f"{datetime.now(UTC):%Y-%m}"
    assert (counted.used, counted.limit, counted.remaining) == (3, 1_000, 997)
    assert (counted.rate_per_second, counted.burst) == (10, 20)
    assert counted == await usage(mesh, key, deployment_id)


@pytest.mark.promise("P-41")
async def test_anothers_usage_and_that_of_no_one_are_one_answer(mesh: Mesh) -> None:
    mine, theirs = await mesh.customer(), await mesh.customer()
    their_deployment, _ = await deployment_key(mesh, theirs)
    own_deployment, own_key = await deployment_key(mesh, mine)
    sibling, _ = await deployment_key(mesh, mine)
    answers = []
    for key, deployment_id in (
        (mine.key, their_deployment),
        (mine.key, new_deployment_id()),
        (mine.key, "nonsense"),
        (own_key, their_deployment),
        (own_key, sibling),
        (own_key, new_deployment_id()),
    ):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND") as refusal:
            await usage(mesh, key, deployment_id)
        answers.append(refusal.value.details())
    assert set(answers) == {"no such deployment"}
    assert (await usage(mesh, own_key, own_deployment)).used == 0


async def test_a_tenants_key_must_name_the_deployment(mesh: Mesh) -> None:
    customer = await mesh.customer()
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="deployment_id"):
        await usage(mesh, customer.key)


async def test_usage_needs_a_key_of_the_right_kind_and_scope(mesh: Mesh) -> None:
    customer = await mesh.customer()
    deployment_id = await registered(mesh, customer)
    blind = (await mesh.key(customer, deployment_id, scopes=("db:read",))).key
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await usage(mesh, blind)
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await usage(mesh, mesh.operator_key)
    with expect_refused("UNAUTHENTICATED", "KEY_MISSING"):
        await outside(mesh).GetUsage(pb.GetUsageRequest())
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await usage(mesh, new_key(KeyKind.TENANT))


@pytest.mark.promise("P-05")
async def test_without_valkey_nothing_is_admitted_until_it_is_back(
    start_mesh: StartMesh, tmp_path: Path
) -> None:
    async with valkey_server(tmp_path / "own") as server:
        overrides = {
            "valkey_port": server.port,
            "valkey_password_file": server.password_files["ratelimit"],
            # No time at all in which each replica decides by itself.
            "valkey_outage_seconds": 0,
        }
        stopped = start_mesh({"ratelimit": overrides}, ("auth", "ratelimit"))
        mesh = await stopped.__aenter__()
        _, key = await deployment_key(mesh, await mesh.customer())
        assert (await take(mesh, key)).decision == pb.DECISION_ALLOWED
        assert await health(mesh) == health_pb2.HealthCheckResponse.SERVING
    try:
        with expect_refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await take(mesh, key)
        with expect_refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await usage(mesh, key)
        await health_is(mesh, health_pb2.HealthCheckResponse.NOT_SERVING)
        async with valkey_server(tmp_path / "own", server.port):
            await health_is(mesh, health_pb2.HealthCheckResponse.SERVING)
            assert (await take(mesh, key)).decision == pb.DECISION_ALLOWED
    finally:
        await stopped.__aexit__(None, None, None)


@pytest.mark.promise("P-05")
async def test_without_auth_no_key_is_taken_for_valid(start_mesh: StartMesh) -> None:
    async with start_mesh({}, ("auth", "ratelimit")) as mesh:
        _, key = await deployment_key(mesh, await mesh.customer())
        assert (await take(mesh, key)).decision == pb.DECISION_ALLOWED
        await mesh.stop("auth")

        async def no_longer_allowed() -> bool:
            return (await take(mesh, key)).decision != pb.DECISION_ALLOWED

        # What is remembered of keys serves until the fence has passed.
        with expect_refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await until(no_longer_allowed)


async def health(mesh: Mesh) -> int:
    stub = health_pb2_grpc.HealthStub(mesh.channel("ratelimit"))
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE))  # type: ignore[attr-defined]  # its stubs know the other kind of channel
    return int(answer.status)


async def health_is(mesh: Mesh, wanted: int) -> None:
    async def reached() -> bool:
        return await health(mesh) == wanted

    await until(reached)


async def until(
    condition: Callable[[], Awaitable[bool]], seconds: float = PATIENCE_SECONDS
) -> None:
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(POLL_SECONDS)
