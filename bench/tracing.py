"""What telemetry costs at the front door: when it is off, and when one trace of a hundred is kept.

Three stacks run beside each other, and one load generator asks them in turns for the cheapest thing
behind the door, with all checks (see `bench/door.py`):

- `bare`: OpenTelemetry's interface itself is replaced by functions that do nothing, so that
  whatever a service still asks of it costs nothing (see `bench/bare.py`);
- `off`: as shipped, with neither a receiver nor an address of metrics;
- `sampled`: traces kept at 1 % from Envoy on, and metrics, both sent to a receiver on this machine.

`off_cost` is 1 - off / bare and `sampled_cost` is 1 - sampled / off, in requests per second: all
answers over all the seconds that their side was asked. Turns are many and short, so that whatever
else the machine does falls on all sides alike. Their order is drawn anew for each round: what one
side leaves behind, spans to send for one, is not always found by the same other. Everything shares
the same cores: the two stacks that are not asked are at rest, the load generator and the receiver
are not.
"""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2

from bench.door import PATH, STATUS
from bench.load import Job, Result, load_generator
from bench.stack import bench_stack, customer, report, run, tell
from deploy.local.ports import LOOPBACK, free_ports
from deploy.local.programs import Options

_SAMPLING = 0.01
_WARM_UP_SECONDS = 2.0
_TELL_EVERY = 25
_LIMITS = {"RATE_SCALE": "1000000", "BURST_SCALE": "1000000"}
_BARE = "bench.bare"
BARE, OFF, SAMPLED = "bare", "off", "sampled"

Rounds = Mapping[str, Sequence[Result]]


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


def figures(rounds: Rounds, plan: Plan) -> dict[str, float | int]:
    """Returns the costs as fractions of the throughput, and the throughputs that they are of."""
    rps = {side: _per_second(results) for side, results in rounds.items()}
    return {
        "off_cost": round(1 - rps[OFF] / rps[BARE], 4),
        "sampled_cost": round(1 - rps[SAMPLED] / rps[OFF], 4),
        **{f"{side}_rps": round(measured) for side, measured in rps.items()},
        "sampling": _SAMPLING,
        "connections": plan.connections,
        "rounds": plan.rounds,
        "seconds_each": plan.seconds,
    }


def _per_second(results: Sequence[Result]) -> float:
    return sum(each.answers for each in results) / sum(each.seconds for each in results)


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


async def _rounds(plan: Plan, jobs: Mapping[str, Job]) -> Rounds:
    rounds: dict[str, list[Result]] = {side: [] for side in jobs}
    order, chance = list(jobs), Random(0)  # noqa: S311 no secret
    async with load_generator() as send:
        for job in jobs.values():
            await send(replace(job, seconds=_WARM_UP_SECONDS))
        for number in range(1, plan.rounds + 1):
            chance.shuffle(order)
            for side in order:
                rounds[side].append(await send(jobs[side]))
            if number % _TELL_EVERY == 0:
                tell(f"round {number} of {plan.rounds}: {_so_far(rounds)}")
    return rounds


def _so_far(rounds: Rounds) -> str:
    speeds = [f"{side} {_per_second(results):,.0f}" for side, results in rounds.items()]
    return "  ".join(speeds) + " req/s"


def main() -> None:
    """Prints progress on standard error and the result as one JSON line, last."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/tracing.py")
    parser.add_argument("--rounds", type=int, default=600, help="turns of each side [600]")
    parser.add_argument("--seconds", type=float, default=0.1, help="length of a turn [0.1]")
    parser.add_argument("--connections", type=int, default=8, help="requests in flight [8]")
    given = parser.parse_args()
    plan = Plan(given.rounds, given.seconds, given.connections)
    report("tracing", run(measure(plan)))


if __name__ == "__main__":
    main()
