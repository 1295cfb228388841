"""How long a sleeping database takes to answer, and what hundreds of them weigh.

The clock of `wake_p50_ms` starts with a `query` over MCP by the official client, sent through the
front door to a deployment whose database sleeps, and stops with the row. `warm_p99_ms` is the same
for one that is awake. `direct_wake_p50_ms` is a whole run of psql with the connection string of a
sleeping one. Then many are made and left until they sleep: `sleeping_mb_each` is what all processes
of the stack together weigh more than before, for each (proportional set sizes: nothing that they
share counts twice), and `disk_mb_each` what its files occupy.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration

from bench.stack import (
    CALL_SECONDS,
    Customer,
    bench_stack,
    customer,
    fresh_id,
    median,
    percentile,
    report,
    run,
    tell,
)
from bench.weight import disk_bytes, memory_bytes
from deploy.local.layout import Layout
from deploy.local.programs import Options
from deploy.local.stack import Addresses
from deploy.local.story.visitor import Agent, visiting
from services.provisioner.drivers import postgres_process

_IDLE_SECONDS = 1
_SETTLE_SECONDS = 3.0
_FALL_ASLEEP_SECONDS = 60.0
_MB = 1_000_000
# Looking more often than it takes a database to idle would be timed with the warm queries.
_OVERRIDES = {"provisioner": {"LOOK_SECONDS": "1", "DEPLOYMENTS_PER_TENANT": "1000"}}


@dataclass(frozen=True, slots=True)
class Plan:
    """How often, and how many."""

    # Times that a database is woken each way, and queries of one that is awake after each.
    wakes: int
    warm: int
    sleeping: int
    # Deployments that are made at one moment.
    at_once: int


async def measure(plan: Plan) -> dict[str, float | int]:
    """Returns the figures of one run."""
    async with (
        bench_stack(Options(overrides=_OVERRIDES)) as addresses,
        customer(addresses, auth_pb2.PLAN_SCALE) as tenant,
    ):
        times = await _times(tenant, addresses, plan)
        return {**times, **await _weights(tenant, addresses, plan)}


async def _times(tenant: Customer, addresses: Addresses, plan: Plan) -> dict[str, float | int]:
    port = urlsplit(addresses.edge).port or 0
    made = await _create(tenant)
    key = await tenant.issue_key(made.deployment_id)
    async with visiting(made.host, port, key) as visitor, visitor.agent() as agent:
        await _query(agent)
        through_door, warm = [], []
        for number in range(plan.wakes):
            await _asleep(tenant, [made.deployment_id])
            through_door.append(await _timed(lambda: _query(agent)))
            warm += [await _timed(lambda: _query(agent)) for _ in range(plan.warm)]
            tell(f"wake {number + 1} of {plan.wakes}: {through_door[-1]:.0f} ms")
    called = await _each_asleep(tenant, made.deployment_id, plan.wakes, _wake_by_call)
    direct = await _each_asleep(tenant, made.deployment_id, plan.wakes, _wake_by_psql)
    return {
        **_percentiles("wake", through_door),
        **_percentiles("warm", warm),
        **_percentiles("wake_call", called),
        **_percentiles("direct_wake", direct),
        "wakes": plan.wakes,
    }


async def _each_asleep(
    tenant: Customer,
    deployment_id: str,
    wakes: int,
    wake: Callable[[Customer, str], Awaitable[Callable[[], Awaitable[None]]]],
) -> list[float]:
    times = []
    prepared = await wake(tenant, deployment_id)
    for _ in range(wakes):
        await _asleep(tenant, [deployment_id])
        times.append(await _timed(prepared))
    return times


async def _wake_by_call(tenant: Customer, deployment_id: str) -> Callable[[], Awaitable[None]]:
    request = pb2.WakeDatabaseRequest(deployment_id=deployment_id)

    async def call() -> None:
        await tenant.provisioner.WakeDatabase(
            request, metadata=tenant.metadata, timeout=CALL_SECONDS
        )

    return call


async def _wake_by_psql(tenant: Customer, deployment_id: str) -> Callable[[], Awaitable[None]]:
    request = pb2.GetDatabaseConnectionRequest(deployment_id=deployment_id)
    found = await tenant.provisioner.GetDatabaseConnection(
        request, metadata=tenant.metadata, timeout=CALL_SECONDS
    )
    psql = str(postgres_process.binaries() / "psql")

    async def connect() -> None:
        process = await asyncio.create_subprocess_exec(
            *(psql, "-XqAt", "-c", "SELECT 1"),
            stdout=asyncio.subprocess.DEVNULL,
            # Not as an argument, which everybody could see.
            env={
                "PGHOST": found.host,
                "PGPORT": str(found.port),
                "PGDATABASE": found.database,
                "PGUSER": found.user,
                "PGPASSWORD": found.password,
            },
        )
        assert await process.wait() == 0

    return connect


async def _weights(tenant: Customer, addresses: Addresses, plan: Plan) -> dict[str, float | int]:
    servers = Layout.of(addresses.state).servers
    await asyncio.sleep(_SETTLE_SECONDS)
    before = await asyncio.to_thread(memory_bytes, servers)
    made: list[str] = []
    began = perf_counter()
    while len(made) < plan.sleeping:
        count = min(plan.at_once, plan.sleeping - len(made))
        batch = await asyncio.gather(*(_create(tenant) for _ in range(count)))
        made += [deployment.deployment_id for deployment in batch]
        tell(f"made {len(made)} of {plan.sleeping}")
    making = perf_counter() - began
    await _asleep(tenant, made)
    await asyncio.sleep(_SETTLE_SECONDS)
    after = await asyncio.to_thread(memory_bytes, servers)
    _tell_weights(before, after)
    disk = await asyncio.to_thread(_disk, servers, made)
    return {
        "sleeping_mb_each": round(
            (sum(after.values()) - sum(before.values())) / len(made) / _MB, 3
        ),
        "provisioner_mb_each": round(
            (after.get("provisioner", 0) - before.get("provisioner", 0)) / len(made) / _MB, 3
        ),
        "disk_mb_each": round(disk / len(made) / _MB, 2),
        "sleeping": len(made),
        "making_s": round(making, 1),
    }


def _disk(servers: Path, made: Sequence[str]) -> int:
    return sum(disk_bytes(servers / deployment_id) for deployment_id in made)


def _tell_weights(before: Mapping[str, int], after: Mapping[str, int]) -> None:
    for name in sorted({**before, **after}):
        was, now = before.get(name, 0) / _MB, after.get(name, 0) / _MB
        tell(f"{name:<12} {was:7.1f} MB before, {now:7.1f} MB after")


async def _create(tenant: Customer) -> pb2.Deployment:
    request = pb2.CreateDeploymentRequest(
        request_id=fresh_id(),
        name="bench",
        mcp=True,
        database=True,
        idle_timeout=Duration(seconds=_IDLE_SECONDS),
    )
    created = await tenant.provisioner.CreateDeployment(
        request, metadata=tenant.metadata, timeout=CALL_SECONDS
    )
    await tenant.finished(created.operation)
    return created.deployment


async def _asleep(tenant: Customer, deployment_ids: Sequence[str]) -> None:
    """Returns when all of them sleep."""
    async with asyncio.timeout(_FALL_ASLEEP_SECONDS):
        for deployment_id in deployment_ids:
            request = pb2.GetDeploymentRequest(deployment_id=deployment_id)
            while True:
                answer = await tenant.provisioner.GetDeployment(
                    request, metadata=tenant.metadata, timeout=CALL_SECONDS
                )
                if _sleeps(answer.deployment):
                    break
                await asyncio.sleep(0.05)


def _sleeps(deployment: pb2.Deployment) -> bool:
    return any(
        resource.kind == pb2.RESOURCE_KIND_DATABASE
        and resource.state == pb2.RESOURCE_STATE_SLEEPING
        for resource in deployment.resources
    )


async def _query(agent: Agent) -> None:
    answer = await agent.call("query", "SELECT 1 AS one")
    assert answer.structured_content is not None, answer
    assert answer.structured_content["rows"] == [{"one": 1}], answer


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    """Returns how long it took, in milliseconds."""
    began = perf_counter()
    await work()
    return (perf_counter() - began) * 1000


def _percentiles(name: str, times: Sequence[float]) -> dict[str, float | int]:
    return {
        f"{name}_p50_ms": round(median(times), 1),
        f"{name}_p99_ms": round(percentile(times, 99), 1),
    }


def main() -> None:
    """Prints progress on standard error and the result as one JSON line, last."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/wake.py")
    parser.add_argument("--wakes", type=int, default=12, help="wakes each way [12]")
    parser.add_argument("--warm", type=int, default=25, help="queries after each wake [25]")
    parser.add_argument("--sleeping", type=int, default=300, help="databases that sleep [300]")
    parser.add_argument("--at-once", type=int, default=6, help="deployments made at once [6]")
    parser.add_argument("--quick", action="store_true", help="3 wakes, and 10 that sleep")
    given = parser.parse_args()
    plan = Plan(given.wakes, given.warm, given.sleeping, given.at_once)
    if given.quick:
        plan = Plan(wakes=3, warm=10, sleeping=10, at_once=plan.at_once)
    report("wake", run(measure(plan)))


if __name__ == "__main__":
    main()
