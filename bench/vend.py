"""Vends per second of one credentials process, of tokens that are at hand, with the audit log on.

credentials is a process of its own, with a real Postgres and a real auth, called over mTLS. Several
tenants each have a deployment with 32 OAuth connections, whose tokens a real authorization server
gave and which live for an hour: none is refreshed meanwhile. A number of callers vend at once, one
token a call or 32 a call; the two take turns, and `batch_ratio` is the quotient of the medians, in
tokens. `p50_ms` and `p99_ms` are of calls for one token, `batched_p50_ms` and `batched_p99_ms` of
calls for 32, all while the other callers are at it. At the end the audit logs are asked for: every
vend that was answered is in them. Everything shares the same cores, the callers too.
"""

import argparse
import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import grpc
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from bench.stack import (
    CALL_SECONDS,
    Customer,
    bearer,
    bench_stack,
    customer,
    fresh_id,
    median,
    percentile,
    report,
    run,
    tell,
)
from deploy.local.authorization_server import AuthorizationServer, running_authorization_server
from deploy.local.layout import Layout
from deploy.local.ports import LOOPBACK
from deploy.local.programs import Options
from deploy.local.stack import Addresses
from services.shared.channel import open_channel
from services.shared.ids import new_deployment_id
from services.shared.settings import ServiceSettings

_WARM_UP_SECONDS = 1.0
_TENANTS = 4
_BATCH = 32
_PROVIDER = "loopback"


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, and by how many at once."""

    rounds: int
    seconds: float
    callers: int


@dataclass(frozen=True, slots=True)
class Borrower:
    """A deployment's key, and its tenant's."""

    key: str = field(repr=False)
    tenant: Customer


@dataclass(slots=True)
class Way:
    """What the turns of one way came to."""

    items: int
    rates: list[float] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Tokens per second, the median of the turns."""
        return median(self.rates)


async def measure(plan: Plan) -> dict[str, float | int]:
    """Returns the figures of one run."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        server = await enter(running_authorization_server())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bulkhead-vend-")))
        (folder / f"{_PROVIDER}.yaml").write_text(server.provider_yaml(_PROVIDER))
        settings = {"PROVIDERS_FOLDER": str(folder), "ALLOW_PRIVATE_TARGETS": "true"}
        addresses = await enter(bench_stack(Options(overrides={"credentials": settings})))
        vends = CredentialsServiceStub(await enter(_channel(addresses, "credentials", "app_proxy")))
        auth = AuthServiceStub(await enter(_channel(addresses, "auth", "provisioner")))
        tenants = [await enter(customer(addresses, auth_pb2.PLAN_SCALE)) for _ in range(_TENANTS)]
        borrowers = [await _borrower(vends, auth, tenant, server) for tenant in tenants]
        ways, vended = await _rounds(plan, vends, borrowers)
        recorded = sum([await _recorded(borrower) for borrower in borrowers])
        assert recorded >= vended, f"{vended} were vended, {recorded} recorded"
    return figures(ways, plan)


def figures(ways: dict[str, Way], plan: Plan) -> dict[str, float | int]:
    """Returns medians over the rounds, and percentiles over all calls."""
    single, batched = ways["single"], ways["batched"]
    return {
        "single_per_s": round(single.per_second),
        "batched_per_s": round(batched.per_second),
        "batch_ratio": round(batched.per_second / single.per_second, 1),
        "p50_ms": round(percentile(single.milliseconds, 50), 1),
        "p99_ms": round(percentile(single.milliseconds, 99), 1),
        "batched_p50_ms": round(percentile(batched.milliseconds, 50), 1),
        "batched_p99_ms": round(percentile(batched.milliseconds, 99), 1),
        "callers": plan.callers,
        "tenants": _TENANTS,
        "rounds": plan.rounds,
        "seconds_each": plan.seconds,
    }


async def _rounds(
    plan: Plan, vends: CredentialsServiceStub, borrowers: Sequence[Borrower]
) -> tuple[dict[str, Way], int]:
    """Returns what each way came to, and how many tokens were vended in all."""
    ways = {"single": Way(1), "batched": Way(_BATCH)}
    vended = 0
    for way in ways.values():
        vended += len(await _turn(plan, _WARM_UP_SECONDS, vends, borrowers, way.items)) * way.items
    for number in range(plan.rounds):
        for name, way in ways.items():
            began = perf_counter()
            calls = await _turn(plan, plan.seconds, vends, borrowers, way.items)
            way.rates.append(len(calls) * way.items / (perf_counter() - began))
            way.milliseconds += calls
            vended += len(calls) * way.items
            tell(f"round {number + 1} of {plan.rounds}: {name:<7} {way.rates[-1]:8,.0f}/s")
    return ways, vended


async def _turn(
    plan: Plan,
    seconds: float,
    vends: CredentialsServiceStub,
    borrowers: Sequence[Borrower],
    items: int,
) -> list[float]:
    """Returns how long each call took, in milliseconds."""
    until = perf_counter() + seconds
    calls = await asyncio.gather(
        *(
            _caller(vends, borrowers[at % len(borrowers)], items, at, until)
            for at in range(plan.callers)
        )
    )
    return [call for each in calls for call in each]


async def _caller(
    vends: CredentialsServiceStub, borrower: Borrower, items: int, first: int, until: float
) -> list[float]:
    metadata, calls, number = bearer(borrower.key), [], first
    while (began := perf_counter()) < until:
        wanted = [pb.VendItem(alias=_alias(number + at), purpose="bench") for at in range(items)]
        answer = await vends.Vend(pb.VendRequest(items=wanted), metadata=metadata)
        assert all(result.HasField("token") for result in answer.results), answer
        calls.append((perf_counter() - began) * 1e3)
        number += items
    return calls


def _alias(number: int) -> str:
    return f"own-{number % _BATCH}"


async def _borrower(
    vends: CredentialsServiceStub,
    auth: AuthServiceStub,
    tenant: Customer,
    server: AuthorizationServer,
) -> Borrower:
    """Returns a deployment with a connection under each alias."""
    deployment_id = new_deployment_id()
    await auth.RegisterDeployment(
        auth_pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=tenant.metadata
    )
    client = pb.ClientCredentials(
        client_id=server.client.client_id, client_secret=server.client.client_secret
    )
    for number in range(_BATCH):
        made = await vends.CreateConnection(
            pb.CreateConnectionRequest(
                request_id=fresh_id(),
                provider=_PROVIDER,
                name=_alias(number),
                client_credentials=client,
            ),
            metadata=tenant.metadata,
        )
        await vends.BindConnection(
            pb.BindConnectionRequest(
                deployment_id=deployment_id,
                connection_id=made.connection.connection_id,
                alias=_alias(number),
            ),
            metadata=tenant.metadata,
        )
    return Borrower(await tenant.issue_key(deployment_id), tenant)


async def _recorded(borrower: Borrower) -> int:
    """Returns how many events the tenant's log holds."""
    page = await borrower.tenant.auth.ListAuditEvents(
        auth_pb2.ListAuditEventsRequest(page_size=1),
        metadata=borrower.tenant.metadata,
        timeout=CALL_SECONDS,
    )
    return int(page.head_sequence)


@asynccontextmanager
async def _channel(
    addresses: Addresses, service: str, peer: str
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
    parser = argparse.ArgumentParser(description=__doc__, prog="bench/vend.py")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way [5]")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn [2]")
    parser.add_argument("--callers", type=int, default=16, help="callers at once [16]")
    given = parser.parse_args()
    report("vend", run(measure(Plan(given.rounds, given.seconds, given.callers))))


if __name__ == "__main__":
    main()
