"""ratelimit as its callers see it while Valkey is away, and after both were restarted."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.shared.ids import new_deployment_id
from tests.conftest import StartMesh
from tests.losable_valkey import LosableValkey, losable_valkey
from tests.mesh import Mesh, bearer
from tests.ratelimit_replicas import until
from tests.refusals import expect_refused

SERVICE = "bulkhead.ratelimit.v1.RatelimitService"
QUOTA = 50


@pytest.fixture
async def losable(tmp_path: Path) -> AsyncIterator[LosableValkey]:
    async with losable_valkey(tmp_path / "valkey") as server:
        yield server


@pytest.fixture
async def mesh(start_mesh: StartMesh, losable: LosableValkey) -> AsyncIterator[Mesh]:
    wide = {"quota_free": QUOTA, "burst_free": 1_000_000, "rate_free": 1_000_000}
    wide["valkey_patience_seconds"] = 10
    own = {"ratelimit": losable.settings().model_dump() | wide}
    async with start_mesh(own, ("auth", "ratelimit")) as running:
        yield running


async def deployment_key(mesh: Mesh) -> str:
    """Returns the key of a new deployment on the plan free."""
    customer = await mesh.customer(auth_pb.PLAN_FREE)
    deployment_id = new_deployment_id()
    await mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterDeployment(
        auth_pb.RegisterDeploymentRequest(deployment_id=deployment_id),
        metadata=bearer(customer.key),
    )
    return (await mesh.key(customer, deployment_id)).key


def door(mesh: Mesh) -> RatelimitServiceStub:
    return mesh.stub(RatelimitServiceStub, "ratelimit", "app_proxy")


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def allowed(mesh: Mesh, key: str, calls: int) -> int:
    """Returns how many of so many calls are."""
    request = pb.AcquireRequest(items=[pb.AcquireItem(key_digest=digest(key), cost=1)] * calls)
    results = (await door(mesh).Acquire(request)).results
    return sum(result.decision == pb.DECISION_ALLOWED for result in results)


async def used(mesh: Mesh, key: str) -> int:
    answer = await mesh.stub(RatelimitServiceStub, "ratelimit").GetUsage(
        pb.GetUsageRequest(), metadata=bearer(key)
    )
    return answer.used


async def lease(mesh: Mesh, key: str) -> pb.LeaseResult:
    request = pb.LeaseRequest(items=[pb.LeaseItem(key_digest=digest(key), calls=5)])
    (result,) = (await door(mesh).Lease(request)).results
    return result


@pytest.mark.promise("P-05")
async def test_calls_go_on_without_valkey_and_each_is_counted(
    mesh: Mesh, losable: LosableValkey
) -> None:
    key = await deployment_key(mesh)
    assert await allowed(mesh, key, 10) == 10
    await losable.kill(forget=True)

    async def goes_on() -> bool:
        # One that has just started decides nothing by itself yet.
        try:
            return await used(mesh, key) == 10
        except grpc.aio.AioRpcError:
            return False

    await until(goes_on)
    assert await allowed(mesh, key, 15) == 15
    assert await used(mesh, key) == 25
    with expect_refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
        await lease(mesh, key)
    health = health_pb2_grpc.HealthStub(mesh.channel("ratelimit"))
    answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))  # type: ignore[attr-defined]  # its stubs know the other kind of channel
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    await losable.start()

    async def leases_again() -> bool:
        try:
            return (await lease(mesh, key)).calls == 5
        except grpc.aio.AioRpcError:
            return False

    await until(leases_again)
    assert await used(mesh, key) == 30
    assert await allowed(mesh, key, 2 * QUOTA) == 20


@pytest.mark.promise("P-05")
async def test_a_restart_of_ratelimit_and_an_empty_valkey_cost_and_give_nothing(
    mesh: Mesh, losable: LosableValkey
) -> None:
    key = await deployment_key(mesh)
    assert await allowed(mesh, key, 37) == 37
    await mesh.stop("ratelimit")
    await losable.kill(forget=True)
    await losable.start()
    await mesh.start("ratelimit")
    assert await used(mesh, key) == 37
    assert await allowed(mesh, key, QUOTA) == QUOTA - 37
