"""Admissions per second of one ratelimit process: one RPC per call, coalesced, and leased.

ratelimit is a process of its own, with a real Valkey and a real auth, called over mTLS as app_proxy
does. The same number of concurrent callers asks in three ways: each by a call of its own; all
through one coalescing client; and through one that leases. They take turns, so that whatever else
the machine does falls on all, and `ratio` is the quotient of the medians of the second and the
first. Keys are of several deployments whose limits are out of reach: every call is counted, none is
refused. At the end what ratelimit has counted is compared with what was admitted: never less, and
more only by leases that came home too late, which is `counted_too_many`. Everything shares the
same cores, the callers too.
"""

import argparse
import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

import grpc
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub

from bench.stack import Customer, bearer, bench_stack, customer, median, report, run, tell
from deploy.local.layout import Layout
from deploy.local.ports import LOOPBACK
from deploy.local.programs import Options
from deploy.local.stack import Addresses
from services.shared.access import open_key_resolver
from services.shared.channel import open_channel
from services.shared.ids import new_deployment_id
from services.shared.key_resolver import KeyResolver
from services.shared.keyformat import digest
from services.shared.leases import open_leased_limits
from services.shared.limits import CoalescedLimits
from services.shared.settings import ServiceSettings

_WARM_UP_SECONDS = 1.0
_DEPLOYMENTS, _KEYS_EACH = 16, 2
# The most that the settings admit: nothing is refused, everything is counted.
_LIMITS = {"RATE_SCALE": "1000000", "BURST_SCALE": "1000000"}

Acquire = Callable[[bytes], Awaitable[pb.AcquireResult]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, and by how many at once."""

    rounds: int
    seconds: float
    callers: int


@dataclass(frozen=True, slots=True)
class Tenancy:
    """The keys that are presented, by deployment."""

    keys: Mapping[str, Sequence[str]]

    @property
    def digests(self) -> list[bytes]:
        """The digests of all keys."""
        return [digest(key) for keys in self.keys.values() for key in keys]


async def measure(plan: Plan) -> dict[str, float | int]:
    """Returns the figures of one run."""
    options = Options(overrides={"ratelimit": _LIMITS})
    async with (
        bench_stack(options) as addresses,
        customer(addresses, auth_pb2.PLAN_SCALE) as tenant,
        _channel(addresses, "ratelimit", peer="app_proxy") as limiter,
        _channel(addresses, "auth", peer="app_proxy") as auth,
        open_key_resolver(auth) as keys,
    ):
        tenancy = await _tenancy(addresses, tenant)
        rates, admitted = await _rounds(plan, limiter, keys, tenancy)
        counted = await _counted(limiter, tenancy)
        assert counted >= admitted, f"{counted} were counted, {admitted} admitted"
        return {**figures(rates, plan), "counted_too_many": counted - admitted}


def figures(rates: Mapping[str, Sequence[float]], plan: Plan) -> dict[str, float | int]:
    """Returns medians over the rounds."""
    medians = {way: median(values) for way, values in rates.items()}
    return {
        **{f"{way}_per_s": round(value) for way, value in medians.items()},
        "ratio": round(medians["coalesced"] / medians["unary"], 1),
        "leased_ratio": round(medians["leased"] / medians["unary"], 1),
        "callers": plan.callers,
        "keys": _DEPLOYMENTS * _KEYS_EACH,
        "rounds": plan.rounds,
        "seconds_each": plan.seconds,
    }


async def _rounds(
    plan: Plan, limiter: grpc.aio.Channel, keys: KeyResolver, tenancy: Tenancy
) -> tuple[dict[str, list[float]], int]:
    """Returns the rates of every turn by way, and how many calls were admitted in all."""
    coalesced = CoalescedLimits(limiter)
    admitted = 0
    rates: dict[str, list[float]] = {}
    async with open_leased_limits(coalesced, keys.resolve) as leased:
        ways = {
            "unary": _one_by_one(RatelimitServiceStub(limiter)),
            "coalesced": coalesced.acquire,
            "leased": leased.acquire,
        }
        for acquire in ways.values():
            admitted += (await _turn(plan, _WARM_UP_SECONDS, acquire, tenancy))[0]
        for number in range(plan.rounds):
            for way, acquire in ways.items():
                calls, seconds = await _turn(plan, plan.seconds, acquire, tenancy)
                admitted += calls
                rates.setdefault(way, []).append(calls / seconds)
                tell(f"round {number + 1} of {plan.rounds}: {way:<9} {calls / seconds:9,.0f}/s")
    return rates, admitted


def _one_by_one(stub: RatelimitServiceStub) -> Acquire:
    async def acquire(key_digest: bytes) -> pb.AcquireResult:
        item = pb.AcquireItem(key_digest=key_digest, cost=1)
        (result,) = (await stub.Acquire(pb.AcquireRequest(items=[item]))).results
        return result

    return acquire


async def _turn(
    plan: Plan, seconds: float, acquire: Acquire, tenancy: Tenancy
) -> tuple[int, float]:
    """Returns how many calls were admitted, and in how many seconds."""
    digests = tenancy.digests
    started = perf_counter()
    until = started + seconds
    calls = await asyncio.gather(
        *(_caller(acquire, digests[at % len(digests)], until) for at in range(plan.callers))
    )
    return sum(calls), perf_counter() - started


async def _caller(acquire: Acquire, key_digest: bytes, until: float) -> int:
    calls = 0
    while perf_counter() < until:
        result = await acquire(key_digest)
        assert result.decision == pb.DECISION_ALLOWED, result
        calls += 1
        # An admission without any I/O leaves the loop to nobody else.
        if not calls % 64:
            await asyncio.sleep(0)
    return calls


async def _counted(limiter: grpc.aio.Channel, tenancy: Tenancy) -> int:
    """Returns the calls of the month that ratelimit knows of."""
    stub = RatelimitServiceStub(limiter)
    usages = [
        await stub.GetUsage(pb.GetUsageRequest(), metadata=bearer(keys[0]))
        for keys in tenancy.keys.values()
    ]
    return sum(usage.used for usage in usages)


async def _tenancy(addresses: Addresses, tenant: Customer) -> Tenancy:
    """Returns deployments that auth knows, and keys of them; ratelimit needs no more of them."""
    keys: dict[str, list[str]] = {}
    async with _channel(addresses, "auth", peer="provisioner") as channel:
        for _ in range(_DEPLOYMENTS):
            deployment_id = new_deployment_id()
            await AuthServiceStub(channel).RegisterDeployment(
                auth_pb2.RegisterDeploymentRequest(deployment_id=deployment_id),
                metadata=tenant.metadata,
            )
            keys[deployment_id] = [await tenant.issue_key(deployment_id) for _ in range(_KEYS_EACH)]
    return Tenancy(keys)


@asynccontextmanager
async def _channel(
    addresses: Addresses, service: str, *, peer: str
) -> AsyncIterator[grpc.aio.Channel]:
    """Yields a channel such as the service `peer` has to `service`."""
    layout = Layout.of(addresses.state)
    settings = ServiceSettings(
        tls_cert_file=layout.pki / f"{peer}.pem",
        tls_key_file=layout.pki / f"{peer}.key",
        tls_ca_file=layout.pki / "ca.pem",
    )
    ports = json.loads(layout.settings.read_text())["ports"]
    async with open_channel(settings, service, f"{LOOPBACK}:{ports[service]}") as channel:
        yield channel


def main() -> None:
    """Prints progress on standard error and the result as one JSON line, last."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/limit.py")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way [5]")
    parser.add_argument("--seconds", type=float, default=1.5, help="length of a turn [1.5]")
    parser.add_argument("--callers", type=int, default=256, help="callers at once [256]")
    given = parser.parse_args()
    report("limit", run(measure(Plan(given.rounds, given.seconds, given.callers))))


if __name__ == "__main__":
    main()
