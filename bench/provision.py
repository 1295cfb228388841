"""How long it takes from asking for a deployment until its database answers an agent.

The clock starts with CreateDeployment (gRPC through the front door), and stops with the answer to
the first `query` over MCP by the official client; between them the operation is awaited and a key
is issued. Each deployment is deleted before the next is made; deleting is not counted.

Then many are asked for at one moment: `burst_total_s` is how long it takes until the last of them
has answered its first query, and `burst_p99_s` how long each takes, from the moment on in which all
were asked for.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from time import perf_counter
from urllib.parse import urlsplit

from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2

from bench.stack import Customer, bench_stack, customer, median, percentile, report, run, tell
from deploy.local.programs import Options
from deploy.local.story.visitor import visiting


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds that each part of one run took."""

    # CreateDeployment answers.
    create: float
    # The operation succeeds.
    ready: float
    # A key is issued.
    key: float
    # An agent connects, and its first query is answered.
    query: float

    @property
    def total(self) -> float:
        """From the first call to the first row."""
        return self.create + self.ready + self.key + self.query


async def measure(runs: int, burst: int) -> dict[str, float | int]:
    """Returns the figures of `runs` deployments made one after another, and `burst` at once."""
    async with bench_stack(Options()) as addresses:
        port = urlsplit(addresses.edge).port or 0
        async with customer(addresses, auth_pb2.PLAN_SCALE) as tenant:
            times = []
            for number in range(runs):
                times.append(await _once(tenant, port))
                tell(f"run {number + 1} of {runs}: {times[-1].total:.3f} s")
            at_once = await _at_once(tenant, port, burst)
    return {**figures(times), **burst_figures(at_once)}


def figures(times: Sequence[Times]) -> dict[str, float | int]:
    """Returns percentiles of the whole, and the median of each part, in seconds."""
    totals = [each.total for each in times]
    parts = {
        f"{part.name}_p50_s": round(median([getattr(each, part.name) for each in times]), 3)
        for part in fields(Times)
    }
    return {
        "p50_s": round(median(totals), 3),
        "p99_s": round(percentile(totals, 99), 3),
        "runs": len(times),
        **parts,
    }


def burst_figures(seconds: Sequence[float]) -> dict[str, float | int]:
    """Returns how long each of those took that were made at once, and all of them."""
    if not seconds:
        return {}
    return {
        "burst": len(seconds),
        "burst_total_s": round(max(seconds), 3),
        "burst_p50_s": round(median(seconds), 3),
        "burst_p99_s": round(percentile(seconds, 99), 3),
    }


async def _at_once(tenant: Customer, port: int, burst: int) -> list[float]:
    """Returns the seconds that each of `burst` deployments took that were asked for at once."""
    times = await asyncio.gather(*(_made(tenant, port) for _ in range(burst)))
    await asyncio.gather(*(tenant.delete(deployment_id) for _, deployment_id in times))
    return [made.total for made, _ in times]


async def _once(tenant: Customer, port: int) -> Times:
    made, deployment_id = await _made(tenant, port)
    await tenant.delete(deployment_id)
    return made


async def _made(tenant: Customer, port: int) -> tuple[Times, str]:
    """Returns how long it took to make a deployment and to ask it something, and its id."""
    marks = [perf_counter()]
    created = await tenant.create("bench")
    marks.append(perf_counter())
    await tenant.finished(created.operation)
    marks.append(perf_counter())
    key = await tenant.issue_key(created.deployment.deployment_id)
    marks.append(perf_counter())
    await _first_query(created.deployment.host, port, key)
    marks.append(perf_counter())
    times = Times(*(after - before for before, after in pairwise(marks)))
    return times, created.deployment.deployment_id


async def _first_query(host: str, port: int, key: str) -> None:
    async with visiting(host, port, key) as visitor, visitor.agent() as agent:
        answer = await agent.call("query", "SELECT 1 AS one")
        assert not answer.is_error, answer
        assert answer.structured_content is not None
        assert answer.structured_content["rows"] == [{"one": 1}], answer


def main() -> None:
    """Prints progress on standard error and the result as one JSON line, last."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/provision.py")
    parser.add_argument("--runs", type=int, default=20, help="deployments to make [20]")
    parser.add_argument("--burst", type=int, default=30, help="deployments at one moment [30]")
    given = parser.parse_args()
    report("provision", run(measure(given.runs, given.burst)))


if __name__ == "__main__":
    main()
