"""What telemetry costs at the front door: when it is off, and when one trace of a hundred is kept.

Three stacks run beside each other, and one load generator asks them in turns for the cheapest thing
behind the door, with all checks (see `bench/door.py`):

- `bare`: OpenTelemetry's interface itself is replaced by functions that do nothing, so that
  whatever a service still asks of it costs nothing (see `bench/bare.py`);
- `off`: as shipped, with neither a receiver nor an address of metrics;
- `sampled`: traces kept at 1 % from Envoy on, and metrics, both sent to a receiver on this machine.

`off_cost` is 1 - off / bare and `sampled_cost` is 1 - sampled / off, in requests per second, each
the median of the quotients of one round, so that whatever else the machine does falls on both
sides. The order of the sides turns from round to round. Everything shares the same cores: the two
stacks that are not asked are at rest, the load generator and the receiver are not.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2

from bench.door import PATH, STATUS, sent
from bench.load import Job
from bench.stack import bench_stack, customer, median, report, run, tell
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.programs import Options

_SAMPLING = 0.01
_WARM_UP_SECONDS = 2.0
_LIMITS = {"RATE_SCALE": "1000000", "BURST_SCALE": "1000000"}
_BARE = "bench.bare"
BARE, OFF, SAMPLED = "bare", "off", "sampled"

Rates = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and with how many connections."""

    rounds: int
    seconds: float
    connections: int


async def measure(plan: Plan) -> dict[str, float | int]:
    """Returns the figures of one run."""
    async with AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(_receiver())
        jobs = {
            side: await stack.enter_async_context(_asked(side, options, plan))
            for side, options in _sides(endpoint).items()
        }
        return figures(await _rounds(plan, jobs), plan)


def figures(rates: Rates, plan: Plan) -> dict[str, float | int]:
    """Returns the costs as fractions of the throughput, and the medians that they are of."""
    return {
        "off_cost": round(_cost(rates[OFF], rates[BARE]), 4),
        "sampled_cost": round(_cost(rates[SAMPLED], rates[OFF]), 4),
        **{f"{side}_rps": round(median(measured)) for side, measured in rates.items()},
        "sampling": _SAMPLING,
        "connections": plan.connections,
        "rounds": plan.rounds,
        "seconds_each": plan.seconds,
    }


def _cost(measured: Sequence[float], without: Sequence[float]) -> float:
    return 1 - median([one / other for one, other in zip(measured, without, strict=True)])


def _sides(endpoint: str) -> dict[str, Options]:
    off = Options(overrides={"ratelimit": _LIMITS})
    return {
        BARE: replace(off, launcher=_BARE),
        OFF: off,
        SAMPLED: replace(off, otlp=endpoint, sampling=_SAMPLING),
    }


@asynccontextmanager
async def _asked(side: str, options: Options, plan: Plan) -> AsyncIterator[Job]:
    """Yields what to send to a stack of its own."""
    async with (
        bench_stack(options) as addresses,
        customer(addresses, auth_pb2.PLAN_SCALE) as tenant,
    ):
        created = await tenant.create(f"bench-{side}")
        await tenant.finished(created.operation)
        yield Job(
            port=urlsplit(addresses.edge).port or 0,
            host=created.deployment.host,
            path=PATH,
            key=await tenant.issue_key(created.deployment.deployment_id),
            status=STATUS,
            connections=plan.connections,
            seconds=plan.seconds,
        )


@asynccontextmanager
async def _receiver() -> AsyncIterator[str]:
    """Yields the endpoint of a receiver in a process of its own, as it would be elsewhere."""
    port = free_ports(1)[0]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("receiver.py")), str(port))
    )
    try:
        yield f"{LOOPBACK}:{port}"
    finally:
        process.terminate()
        await process.wait()


async def _rounds(plan: Plan, jobs: Mapping[str, Job]) -> Rates:
    for job in jobs.values():
        await sent(replace(job, seconds=_WARM_UP_SECONDS))
    rates: dict[str, list[float]] = {side: [] for side in jobs}
    order = list(jobs)
    for number in range(plan.rounds):
        for side in order:
            rates[side].append((await sent(jobs[side])).per_second)
        order = order[1:] + order[:1]
        round_ = "  ".join(f"{side} {measured[-1]:,.0f}" for side, measured in rates.items())
        tell(f"round {number + 1} of {plan.rounds}: {round_} req/s")
    return rates


def main() -> None:
    """Prints progress on standard error and the result as one JSON line, last."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/tracing.py")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each side [9]")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn [2.0]")
    parser.add_argument("--connections", type=int, default=32, help="requests in flight [32]")
    given = parser.parse_args()
    plan = Plan(given.rounds, given.seconds, given.connections)
    report("tracing", run(measure(plan)))


if __name__ == "__main__":
    main()
