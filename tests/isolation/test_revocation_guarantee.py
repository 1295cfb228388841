"""No request that starts after RevokeKey returned is let through, whatever happens meanwhile."""

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from bulkhead.app_proxy.v1 import routing_service_pb2 as routing_pb2
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceStub
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.envoy.auth.v3 import authorization_pb2 as envoy_pb2
from bulkhead.envoy.auth.v3.authorization_pb2_grpc import AuthorizationStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as limits_pb2
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import (
    RatelimitServiceServicer,
    add_RatelimitServiceServicer_to_server,
)
from google.rpc import code_pb2

from deploy.local.ports import free_ports
from services.shared.ids import new_deployment_id
from services.shared.tls import Identity, server_credentials
from tests.conftest import StartMesh
from tests.isolation.replicas import PATIENCE_SECONDS, Relay, Replica, background, channel
from tests.mesh import Customer, Mesh, bearer, fresh_id

REPLICAS = 3
REVOCATIONS = 1_000
AT_ONCE = 24
DISTURBED_SECONDS = 1.5


class EveryoneIsWithinLimits(RatelimitServiceServicer):
    """A limiter without limits that knows no keys: whoever is let through, app_proxy alone let."""

    async def Acquire(self, request: limits_pb2.AcquireRequest, context: Any) -> Any:  # noqa: N802
        allowed = limits_pb2.AcquireResult(decision=limits_pb2.DECISION_ALLOWED)
        return limits_pb2.AcquireResponse(results=[allowed for _ in request.items])

    async def Lease(self, request: limits_pb2.LeaseRequest, context: Any) -> Any:  # noqa: N802
        refused = limits_pb2.LeaseResult(decision=limits_pb2.DECISION_BURST_EXCEEDED)
        return limits_pb2.LeaseResponse(results=[refused for _ in request.items])

    async def ReturnLease(  # noqa: N802
        self, request: limits_pb2.ReturnLeaseRequest, context: Any
    ) -> Any:
        return limits_pb2.ReturnLeaseResponse(returned=[0 for _ in request.items])

    async def ReleaseDeployment(  # noqa: N802
        self, request: limits_pb2.ReleaseDeploymentRequest, context: Any
    ) -> Any:
        return limits_pb2.ReleaseDeploymentResponse()

    async def EraseTenant(  # noqa: N802
        self, request: limits_pb2.EraseTenantRequest, context: Any
    ) -> Any:
        return limits_pb2.EraseTenantResponse()

    async def GetUsage(self, request: limits_pb2.GetUsageRequest, context: Any) -> Any:  # noqa: N802
        return limits_pb2.GetUsageResponse()


@dataclass
class Victim:
    """A key that will be revoked."""

    key_id: str
    key: str
    # RevokeKey has returned.
    dead: bool = False


@dataclass
class Gate:
    """The replicas, the wires between them, and all that was seen at the doors."""

    customer: Customer
    deployment_id: str
    auths: Sequence[Replica]
    proxies: Sequence[Replica]
    # By app_proxy: its wires to each auth.
    wires: Sequence[Sequence[Relay]]
    issuers: Sequence[AuthServiceStub]
    doors: Sequence[AuthorizationStub]
    chance: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    disturbed: Counter[str] = field(default_factory=Counter)
    fenced: int = 0
    wrong: list[str] = field(default_factory=list)
    late: set[asyncio.Task[None]] = field(default_factory=set)

    async def insist(self, call: Callable[[AuthServiceStub], Awaitable[Any]]) -> Any:
        """Returns what auth answers; asks one replica after the other until one does."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                try:
                    return await call(self.chance.choice(self.issuers))
                except grpc.aio.AioRpcError as error:
                    if error.code().name not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}:
                        raise
                    self.seen["auth was away"] += 1
                    await asyncio.sleep(0.02)

    async def issue(self) -> Victim:
        request = auth_pb2.IssueKeyRequest(request_id=fresh_id(), deployment_id=self.deployment_id)
        issued = await self.insist(
            lambda stub: stub.IssueKey(request, metadata=bearer(self.customer.key), timeout=3)
        )
        return Victim(issued.key_id, issued.key)

    async def revoke(self, victim: Victim) -> None:
        request = auth_pb2.RevokeKeyRequest(key_id=victim.key_id)
        revoked = await self.insist(
            lambda stub: stub.RevokeKey(request, metadata=bearer(self.customer.key), timeout=4)
        )
        victim.dead = True
        assert revoked.effect.HasField("effective_at")
        self.fenced += revoked.effect.watchers_fenced

    async def present(self, door: int, victim: Victim) -> bool:
        """Whether the door lets the key through; a request that begins when it is dead must not."""
        began_dead = victim.dead
        http = envoy_pb2.AttributeContext.HttpRequest(
            host=host_of(self.deployment_id),
            path="/mcp",
            headers={"authorization": f"Bearer {victim.key}"},
        )
        request = envoy_pb2.AttributeContext(request=envoy_pb2.AttributeContext.Request(http=http))
        try:
            answer = await self.doors[door].Check(
                envoy_pb2.CheckRequest(attributes=request), timeout=10
            )
        except grpc.aio.AioRpcError:
            self.seen["door was away"] += 1
            return False
        through = bool(answer.status.code == code_pb2.OK)
        self.seen[f"{'dead' if began_dead else 'live'} {through=}"] += 1
        if through and began_dead:
            self.wrong.append(f"{victim.key_id} at door {door}")
        return through

    async def hammer(self, victim: Victim) -> None:
        while True:
            await self.present(self.chance.randrange(REPLICAS), victim)
            await asyncio.sleep(0.02)

    async def life_and_death(self) -> None:
        """A key is issued, works, is revoked while it is used, and then works nowhere."""
        victim = await self.issue()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await self.present(self.chance.randrange(REPLICAS), victim):
                await asyncio.sleep(0.02)
        async with background(lambda: self.hammer(victim)):
            await self.revoke(victim)
            # Not awaited here: a paused door answers when it goes on.
            for door in range(REPLICAS):
                task = asyncio.create_task(self._after(door, victim))
                self.late.add(task)
                task.add_done_callback(self.late.discard)

    async def _after(self, door: int, victim: Victim) -> None:
        await self.present(door, victim)

    async def disturb_doors(self) -> None:
        """Pauses, cuts off and kills one app_proxy after the other."""
        while True:
            for disturb in self.chance.sample([self._pause, self._cut, self._kill], 3):
                await disturb(self.chance.choice(self.proxies))

    async def disturb_auth(self) -> None:
        """Pauses and kills one auth after the other."""
        while True:
            for disturb in self.chance.sample([self._pause, self._kill], 2):
                await disturb(self.chance.choice(self.auths))

    async def _pause(self, replica: Replica) -> None:
        replica.pause()
        try:
            await asyncio.sleep(DISTURBED_SECONDS)
        finally:
            replica.resume()
        await self._recovered(f"{replica.service} paused")

    async def _kill(self, replica: Replica) -> None:
        await replica.end()
        await replica.start()
        await self._recovered(f"{replica.service} killed")

    async def _cut(self, replica: Replica) -> None:
        for wire in self.wires[replica.number]:
            wire.cut()
        try:
            await asyncio.sleep(DISTURBED_SECONDS)
        finally:
            for wire in self.wires[replica.number]:
                wire.mend()
        await self._recovered(f"{replica.service} cut off")

    async def _recovered(self, what: str) -> None:
        """Waits until some keys were revoked in peace."""
        self.disturbed[what] += 1
        before = self.seen["revoked"]
        while self.seen["revoked"] < before + AT_ONCE:
            await asyncio.sleep(0.02)


def host_of(deployment_id: str) -> str:
    return f"{deployment_id.removeprefix('dep_')}.localhost"


@pytest.fixture
async def gate(start_mesh: StartMesh) -> AsyncIterator[Gate]:
    quiet = {"log_level": "error"}
    async with (
        start_mesh({"auth": quiet, "app_proxy": quiet}, ("auth", "app_proxy")) as mesh,
        AsyncExitStack() as stack,
    ):
        customer, deployment_id = await mesh.customer(), new_deployment_id()
        await prepared(mesh, customer, deployment_id)
        # From now on the replicas are processes of their own, over the same stores.
        for service in ("app_proxy", "auth"):
            await mesh.stop(service)
        yield await opened(mesh, stack, customer, deployment_id)


async def prepared(mesh: Mesh, customer: Customer, deployment_id: str) -> None:
    """Gives the customer a deployment with a route, and nothing behind it."""
    await mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterDeployment(
        auth_pb2.RegisterDeploymentRequest(deployment_id=deployment_id),
        metadata=bearer(customer.key),
    )
    route = routing_pb2.Route(
        host=host_of(deployment_id),
        deployment_id=deployment_id,
        state=routing_pb2.ROUTE_STATE_RUNNING,
        name="target",
    )
    await mesh.stub(RoutingServiceStub, "app_proxy", "provisioner").PutRoute(
        routing_pb2.PutRouteRequest(route=route), metadata=bearer(customer.key)
    )


async def opened(mesh: Mesh, stack: AsyncExitStack, customer: Customer, deployment_id: str) -> Gate:
    ports = iter(free_ports(REPLICAS * (2 + REPLICAS)))
    auths = [replica(mesh, "auth", number, next(ports)) for number in range(REPLICAS)]
    wires = [[Relay(next(ports), auth.port) for auth in auths] for _ in range(REPLICAS)]
    limiter = await stack.enter_async_context(limiting(mesh))
    proxies = [
        replica(
            mesh,
            "app_proxy",
            number,
            next(ports),
            auth_target="ipv4:" + ",".join(f"127.0.0.1:{wire.port}" for wire in wires[number]),
            ratelimit_target=f"127.0.0.1:{limiter}",
        )
        for number in range(REPLICAS)
    ]
    for wire in (wire for own in wires for wire in own):
        await stack.enter_async_context(wire.running())
    for started in (*auths, *proxies):
        stack.push_async_callback(started.end)
    await asyncio.gather(*(started.start() for started in (*auths, *proxies)))

    async def reached(replica: Replica) -> grpc.aio.Channel:
        return await stack.enter_async_context(
            channel(replica.port, replica.service, mesh.pki["edge"])
        )

    return Gate(
        customer,
        deployment_id,
        auths,
        proxies,
        wires,
        [AuthServiceStub(await reached(auth)) for auth in auths],
        [AuthorizationStub(await reached(proxy)) for proxy in proxies],
        random.Random(secrets.randbits(32)),  # noqa: S311 chooses whom to disturb
    )


def replica(mesh: Mesh, service: str, number: int, port: int, **changed: str) -> Replica:
    anywhere = "127.0.0.1:0"
    own = {"listen": f"127.0.0.1:{port}", "health_listen": anywhere} | changed
    if service == "app_proxy":
        own["http_listen"] = anywhere
    settings = mesh.settings[service].model_copy(update=own)
    return Replica(service, number, settings, mesh.home / f"{service}-{number}.log")


@asynccontextmanager
async def limiting(mesh: Mesh) -> AsyncIterator[int]:
    """Yields the port of a limiter that lets everyone through."""
    files = mesh.pki["ratelimit"]
    identity = Identity.read(files.certificate, files.key, files.authority)
    server = grpc.aio.server()
    add_RatelimitServiceServicer_to_server(EveryoneIsWithinLimits(), server)
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity))
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


KINDS = {
    "app_proxy paused",
    "app_proxy cut off",
    "app_proxy killed",
    "auth paused",
    "auth killed",
}


@pytest.mark.promise("P-37")
async def test_no_request_that_starts_after_a_revocation_returned_is_let_through(
    gate: Gate,
) -> None:
    async def revoke_for_ever() -> None:
        while gate.seen["revoked"] < REVOCATIONS or not set(gate.disturbed) >= KINDS:
            await gate.life_and_death()
            gate.seen["revoked"] += 1

    async with background(gate.disturb_doors, gate.disturb_auth):
        await asyncio.gather(*(revoke_for_ever() for _ in range(AT_ONCE)))
    await asyncio.gather(*gate.late)
    assert gate.wrong == []
    assert gate.seen["revoked"] >= REVOCATIONS
    # It was attacked: every key worked before, and dead ones were refused by doors that answered.
    assert gate.seen["live through=True"] >= REVOCATIONS
    assert gate.seen["dead through=False"] >= REVOCATIONS
    print(gate.seen, gate.disturbed, f"{gate.fenced} fenced")  # noqa: T201 for whoever runs it alone
