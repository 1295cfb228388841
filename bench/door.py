"""Requests per second through the front door with all its checks, and through it without them.

Both sides are one Envoy, one upstream and one request, sent by one load generator over the same
number of connections; only the listener differs: the other one does not ask app_proxy who may
pass. They take turns, so that whatever else the machine does falls on both, and `ratio` is the
quotient of the medians. The upstream is app_proxy's own HTTP server, at the cheapest thing that it
answers behind the door: a GET of `/mcp`, which takes only POST (405). It looks at route and key
once more itself, so the other side needs a key as well. Everything shares the same cores, the load
generator too.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2

from bench.load import Job, Result, load_generator
from bench.stack import bench_stack, customer, median, percentile, report, run, tell
from deploy.local.programs import Options
from deploy.local.stack import Addresses

PATH, STATUS = "/mcp", 405
_WARM_UP_SECONDS = 1.0
_PERCENTS = (50, 90, 99)
# The most that the settings admit: nothing is refused, everything is counted.
_LIMITS = {"RATE_SCALE": "1000000", "BURST_SCALE": "1000000"}

Rounds = Mapping[str, list[Result]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and with how many connections."""

    rounds: int
    seconds: float
    connections: int


async def measure(plan: Plan) -> dict[str, float | int]:
    """Returns the figures of one run."""
    options = Options(unchecked=True, overrides={"ratelimit": _LIMITS})
    async with (
        bench_stack(options) as addresses,
        customer(addresses, auth_pb2.PLAN_SCALE) as tenant,
    ):
        created = await tenant.create("bench")
        await tenant.finished(created.operation)
        key = await tenant.issue_key(created.deployment.deployment_id)
        job = Job(
            port=0,
            host=created.deployment.host,
            path=PATH,
            key=key,
            status=STATUS,
            connections=plan.connections,
            seconds=plan.seconds,
        )
        return figures(await _rounds(plan, _jobs(addresses, job)), plan)


def figures(rounds: Rounds, plan: Plan) -> dict[str, float | int]:
    """Returns medians over the rounds, and percentiles of the latencies of all rounds."""
    rps = {side: median([each.per_second for each in results]) for side, results in rounds.items()}
    latencies = {
        f"{side}_p{percent}_ms": round(percentile(_latencies(results), percent), 2)
        for side, results in rounds.items()
        for percent in _PERCENTS
    }
    return {
        "checked_rps": round(rps["checked"]),
        "unchecked_rps": round(rps["unchecked"]),
        "ratio": round(rps["checked"] / rps["unchecked"], 3),
        **latencies,
        "connections": plan.connections,
        "rounds": plan.rounds,
        "seconds_each": plan.seconds,
    }


def _jobs(addresses: Addresses, job: Job) -> dict[str, Job]:
    assert addresses.unchecked is not None
    edges = {"checked": addresses.edge, "unchecked": addresses.unchecked}
    return {side: replace(job, port=urlsplit(edge).port or 0) for side, edge in edges.items()}


async def _rounds(plan: Plan, jobs: Mapping[str, Job]) -> Rounds:
    rounds: Rounds = {side: [] for side in jobs}
    async with load_generator() as send:
        for job in jobs.values():
            await send(replace(job, seconds=_WARM_UP_SECONDS))
        for number in range(plan.rounds):
            for side, job in jobs.items():
                result = await send(job)
                rounds[side].append(result)
                speed = f"{side:<9} {result.per_second:7,.0f} req/s"
                tell(f"round {number + 1} of {plan.rounds}: {speed}")
    return rounds


def _latencies(results: Sequence[Result]) -> list[float]:
    return [latency for result in results for latency in result.latencies_ms]


def main() -> None:
    """Prints progress on standard error and the result as one JSON line, last."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/door.py")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each side [4]")
    parser.add_argument("--seconds", type=float, default=1.75, help="length of a turn [1.75]")
    parser.add_argument("--connections", type=int, default=32, help="requests in flight [32]")
    given = parser.parse_args()
    plan = Plan(given.rounds, given.seconds, given.connections)
    report("door", run(measure(plan)))


if __name__ == "__main__":
    main()
