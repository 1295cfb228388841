"""Minutes of mixed load, and whether any service grows.

An embedded stack of its own is used as tenants use it: pages and agents at the door, calls that
read and write, vends of tokens that expire within seconds, limits, and deployments that come and
go. Many calls are cancelled, expire, or are left by a caller who closes the connection. Each second
every service is measured: the memory that it allocated, its unshared (USS) and its resident memory
(RSS), its open files, its sockets and its threads. What they are after a warm-up must stay: neither
the slope over that time nor the highest of its windows may exceed the median by more than 5 % of
memory, or by more than 5 % or a few of the others. USS and RSS are shown and not judged, for they
change with who else has the same programs open; nor are Valkey and Postgres, which hold what the
load wrote.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import grpc
import psutil
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.credentials.v1 import credentials_service_pb2 as pb
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub

from bench.flatness import Flatness, flatness
from bench.soak_load import ALIASES, Load, Site, Tally, alias, coming_and_going
from bench.stack import CALL_SECONDS, Customer, bench_stack, customer, fresh_id, run, tell
from deploy.local.authorization_server import AuthorizationServer, running_authorization_server
from deploy.local.layout import SERVICES, Layout
from deploy.local.probes import EDGE, POSTGRES, VALKEY
from deploy.local.programs import Options
from deploy.local.record import read_record
from deploy.local.stack import Addresses

_PROVIDER = "loopback"
# A token that is vended has a minute left: these are refreshed every few seconds.
_TOKEN_SECONDS = 65
_SITES = 2
_PASSING_SECONDS = 10.0
_SAMPLE_SECONDS = 1.0
_TELL_SECONDS = 15.0
_MB = 1 << 20
_MEMORY = ("allocated", "uss", "rss")
_MEASURES = (*_MEMORY, "files", "sockets", "threads")
_JUDGED = (*SERVICES, EDGE)
_SHOWN = (*_JUDGED, VALKEY, POSTGRES)
_PART = 0.05
# Of files, sockets and threads: how many may come to be, and how many a pool that breathes holds.
_FEW, _POOL = 4.0, 16.0
_SCOPES = ("connections:read", "db:write", "environment:read", "tokens:read", "usage:read")
_LIMITS = {
    "ratelimit": {"RATE_SCALE": "1000000", "BURST_SCALE": "1000000"},
    "provisioner": {"DEPLOYMENTS_PER_TENANT": "100"},
}

Sample = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, in seconds; the first of them are the warm-up."""

    seconds: float
    warm_up: float


@dataclass(slots=True)
class Course:
    """What was measured of every process, second by second."""

    samples: list[Sample] = field(default_factory=list)

    def series(self, name: str, measure: str, after: int) -> list[float]:
        """Returns the measurements of one process from the sample of that number on."""
        return [sample[name][measure] for sample in self.samples[after:]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one measure of one service went."""

    name: str
    measure: str
    flatness: Flatness

    @property
    def flat(self) -> bool:
        """Whether it stayed."""
        if self.measure in _MEMORY:
            return self.measure != _MEMORY[0] or self.flatness.within(_PART)
        return self.flatness.within(_PART, _FEW, _POOL)


async def soak(plan: Plan) -> dict[str, Any]:
    """Returns what was found; `grown` and `wrong` are empty when all is well."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        provider = await enter(running_authorization_server())
        provider.rules.expires_in = _TOKEN_SECONDS
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bulkhead-soak-")))
        (folder / f"{_PROVIDER}.yaml").write_text(provider.provider_yaml(_PROVIDER))
        settings = {"PROVIDERS_FOLDER": str(folder), "ALLOW_PRIVATE_TARGETS": "true"}
        addresses = await enter(
            bench_stack(Options(overrides={**_LIMITS, "credentials": settings}))
        )
        passing, *tenants = [
            await enter(customer(addresses, auth_pb2.PLAN_SCALE)) for _ in range(1 + _SITES)
        ]
        channel = await enter(grpc.aio.insecure_channel(addresses.api))
        sites = [await _site(addresses, channel, tenant, provider) for tenant in tenants]
        tally, course = Tally(), Course()
        async with _loaded(sites, passing, tally):
            pids = _pids(addresses)
            await _measure(pids, plan, course, tally)
            now = _pids(addresses)
            died = sorted(name for name, pid in pids.items() if now.get(name) != pid)
    return _found(course, tally, died, plan)


@asynccontextmanager
async def _loaded(sites: Sequence[Site], passing: Customer, tally: Tally) -> AsyncIterator[None]:
    """Keeps the load up for the length of the context.

    Raises:
        ExceptionGroup: a worker found something for which it knows no name.
    """
    async with asyncio.TaskGroup() as group:
        workers = [
            group.create_task(Load(site, _PROVIDER, tally, seed).run())
            for seed, site in enumerate(sites)
        ]
        workers.append(group.create_task(coming_and_going(passing, tally, _PASSING_SECONDS)))
        yield
        for worker in workers:
            worker.cancel()


async def _measure(pids: Mapping[str, int], plan: Plan, course: Course, tally: Tally) -> None:
    """Measures until the time is over.

    Raises:
        SystemExit: 1, when one of the processes has died.
    """
    began = monotonic()
    told = began
    while (now := monotonic()) < began + plan.seconds:
        try:
            course.samples.append(await asyncio.to_thread(_sample, pids))
        except psutil.NoSuchProcess as error:
            names = [name for name, pid in pids.items() if pid == error.pid]
            raise SystemExit(f"{', '.join(names)} died") from None
        if now >= told:
            told = now + _TELL_SECONDS
            _progress(now - began, plan, course.samples[-1], tally)
        await asyncio.sleep(_SAMPLE_SECONDS)


def _sample(pids: Mapping[str, int]) -> Sample:
    return {name: _measured(psutil.Process(pid)) for name, pid in pids.items()}


def _measured(process: psutil.Process) -> dict[str, float]:
    """Returns the measures of a process and of those that it started."""
    sums = dict.fromkeys(_MEASURES, 0.0)
    for each in (process, *process.children(recursive=True)):
        try:
            memory = each.memory_full_info()
            own = (
                *(_allocated(each), memory.uss, memory.rss),
                *(each.num_fds(), _sockets(each), each.num_threads()),
            )
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue
        for measure, value in zip(_MEASURES, own, strict=True):
            sums[measure] += value
    return sums


def _allocated(process: psutil.Process) -> int:
    """Returns its bytes that no file has, in memory or swapped out."""
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines[1:]}
    return (int(kilobytes["Anonymous"]) + int(kilobytes["Swap"])) * 1024


def _sockets(process: psutil.Process) -> int:
    """Returns how many sockets it has open, of whatever kind."""
    folder = Path(f"/proc/{process.pid}/fd")
    try:
        links = [str(each.readlink()) for each in folder.iterdir()]
    except OSError:
        # A descriptor was closed while they were read: the files are counted anyway.
        return len(process.net_connections("all"))
    return sum(link.startswith("socket:") for link in links)


def _pids(addresses: Addresses) -> dict[str, int]:
    """Returns the processes of the stack that are measured."""
    record = read_record(Layout.of(addresses.state))
    assert record is not None
    return {
        each.name: each.alive.pid
        for each in record.processes
        if each.name in _SHOWN and each.alive is not None
    }


async def _site(
    addresses: Addresses, channel: grpc.aio.Channel, tenant: Customer, provider: AuthorizationServer
) -> Site:
    """Returns a deployment with a database and several connections, ready to be used."""
    made = await tenant.create("soak")
    await tenant.finished(made.operation)
    site = Site(
        tenant=tenant,
        credentials=CredentialsServiceStub(channel),
        ratelimit=RatelimitServiceStub(channel),
        deployment_id=made.deployment.deployment_id,
        host=made.deployment.host,
        port=urlsplit(addresses.edge).port or 0,
        key=await _key(tenant, made.deployment.deployment_id),
    )
    for number in range(ALIASES):
        await _lend(site, provider, alias(number))
    return site


async def _key(tenant: Customer, deployment_id: str) -> str:
    """Returns a key of the deployment that reads its environment too."""
    request = auth_pb2.IssueKeyRequest(
        request_id=fresh_id(), deployment_id=deployment_id, scopes=sorted(_SCOPES)
    )
    issued = await tenant.auth.IssueKey(request, metadata=tenant.metadata, timeout=CALL_SECONDS)
    return issued.key


async def _lend(site: Site, provider: AuthorizationServer, name: str) -> None:
    made = await site.credentials.CreateConnection(
        pb.CreateConnectionRequest(
            request_id=fresh_id(),
            provider=_PROVIDER,
            name=name,
            client_credentials=pb.ClientCredentials(
                client_id=provider.client.client_id, client_secret=provider.client.client_secret
            ),
        ),
        metadata=site.tenant.metadata,
        timeout=CALL_SECONDS,
    )
    await site.credentials.BindConnection(
        pb.BindConnectionRequest(
            deployment_id=site.deployment_id,
            connection_id=made.connection.connection_id,
            alias=name,
        ),
        metadata=site.tenant.metadata,
        timeout=CALL_SECONDS,
    )


def _progress(elapsed: float, plan: Plan, sample: Sample, tally: Tally) -> None:
    memory = " ".join(f"{name} {sample[name]['allocated'] / _MB:.1f}" for name in _JUDGED)
    phase = "warm-up" if elapsed < plan.warm_up else "measured"
    tell(f"{elapsed:5.0f} s {phase}: MB {memory}; {tally.total} done, {len(tally.wrong)} wrong")


def _found(course: Course, tally: Tally, died: Sequence[str], plan: Plan) -> dict[str, Any]:
    after = int(len(course.samples) * plan.warm_up / plan.seconds)
    verdicts = [
        Verdict(name, measure, flatness(course.series(name, measure, after)))
        for name in _SHOWN
        for measure in _MEASURES
    ]
    _table(verdicts)
    return {
        "grown": [
            f"{each.name} {each.measure}"
            for each in verdicts
            if each.name in _JUDGED and not each.flat
        ],
        "died": list(died),
        "wrong": len(tally.wrong),
        "first_wrong": tally.wrong[:5],
        "services": {name: _figures(name, verdicts) for name in _SHOWN},
        "ended": dict(sorted(tally.ended.items())),
        "minutes": round(plan.seconds / 60, 1),
        "warm_up_s": round(plan.warm_up),
    }


def _figures(name: str, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        each.measure: {
            "median": round(each.flatness.median / (_MB if each.measure in _MEMORY else 1), 1),
            "growth": round(each.flatness.growth, 4),
            "peak": round(each.flatness.peak, 4),
        }
        for each in verdicts
        if each.name == name
    }


def _table(verdicts: Sequence[Verdict]) -> None:
    tell(f"{'':<12} {'':<8} {'median':>8} {'growth':>8} {'peak':>8}")
    for each in verdicts:
        found, size = each.flatness, each.flatness.median
        shown = f"{size / _MB:.1f}" if each.measure in _MEMORY else f"{size:.0f}"
        word = "" if each.name not in _JUDGED else "flat" if each.flat else "GROWN"
        course = f"{found.growth:>8.1%} {found.peak:>8.1%}"
        tell(f"{each.name:<12} {each.measure:<8} {shown:>8} {course} {word}")


def main() -> None:
    """Prints progress on standard error; exits with 1 when a service grew, died or erred."""
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/soak.py")
    parser.add_argument("--minutes", type=float, default=10.0, help="in all [10]")
    parser.add_argument(
        "--warm-up", type=float, help="seconds of it [3 in 10 of them, 180 at most]"
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON line")
    given = parser.parse_args()
    seconds = given.minutes * 60
    found = run(soak(Plan(seconds, given.warm_up or min(180.0, seconds * 0.3))))
    if given.json:
        print(json.dumps({"name": "soak", **found, "cores": os.cpu_count()}), flush=True)
    bad = [*found["grown"], *(f"{name} died" for name in found["died"]), *found["first_wrong"]]
    tell("not well: " + "; ".join(bad) if bad else "every service is flat")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
