"""Callers of every kind that call a fleet all the time, and write down every call that fails."""

import asyncio
import itertools
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx2
import mcp
from bulkhead.app_proxy.v1 import routing_service_pb2 as routing
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceStub
from bulkhead.auth.v1 import auth_service_pb2 as auth
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from mcp.client.streamable_http import streamable_http_client

from services.shared.access import open_key_resolver
from services.shared.errors import BulkheadError
from services.shared.keyformat import digest
from services.shared.limits import CoalescedLimits
from tests.fleet import Fleet
from tests.mesh import bearer, fresh_id
from tests.processes import PATIENCE_SECONDS

Call = Callable[[], Awaitable[object]]


class RefusedError(Exception):
    """An answer of the door that is not the one that was due."""

    def __init__(self, answer: httpx2.Response) -> None:
        super().__init__(f"{answer.status_code} {answer.text}")
        self.status = answer.status_code
        # In seconds; 0 when it says nothing.
        self.retry_after = int(answer.headers.get("retry-after", "0"))


_FAILURES = (
    grpc.aio.AioRpcError,
    httpx2.HTTPError,
    mcp.MCPError,
    BulkheadError,
    AssertionError,
    RefusedError,
)
# Between two calls of one caller: the machine is to have time for the replicas' starts.
_PAUSE_SECONDS = 0.1


@dataclass(frozen=True)
class Tenant:
    """A tenant with a deployment whose database has a table, and one more that comes and goes."""

    fleet: Fleet
    api: grpc.aio.Channel
    key: str
    app: provisioner.Deployment
    other: provisioner.Deployment
    app_key: str
    # Of the same deployment, until it was revoked.
    former_key: str

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Presents the tenant's key."""
        return bearer(self.key)

    def at_the_door(self) -> httpx2.AsyncClient:
        """Returns a client of the deployment, with its key."""
        headers = {"host": self.app.host, "authorization": f"Bearer {self.app_key}"}
        return httpx2.AsyncClient(
            base_url=f"http://{self.fleet.edge.listen}", headers=headers, timeout=PATIENCE_SECONDS
        )

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[mcp.Client]:
        """Yields an MCP client of the deployment."""
        async with (
            self.at_the_door() as client,
            mcp.Client(
                streamable_http_client(f"{client.base_url}/mcp", http_client=client)
            ) as agent,
        ):
            yield agent


@dataclass(frozen=True)
class Failure:
    """A call that failed."""

    kind: str
    error: Exception

    def __str__(self) -> str:
        return f"{self.kind}: {type(self.error).__name__} {self.error}"


@dataclass
class Load:
    """What was called, how often, and what failed."""

    calls: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    _kinds: dict[str, Call] = field(default_factory=dict)

    def add(self, kinds: Mapping[str, Call]) -> None:
        """Adds callers; each calls again and again while the load is on."""
        self._kinds |= kinds

    def leave_out(self, kind: str) -> None:
        """Calls no more of this kind."""
        del self._kinds[kind]

    @asynccontextmanager
    async def on(self) -> AsyncIterator[None]:
        """Calls for the length of the block; every call that was begun is awaited."""
        over = asyncio.Event()
        callers = [
            asyncio.create_task(self._keep(kind, call, over)) for kind, call in self._kinds.items()
        ]
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*callers)

    async def each_called(self, times: int = 3) -> None:
        """Returns when each has called so many times more."""
        wanted = {kind: self.calls[kind] + times for kind in self._kinds}
        async with asyncio.timeout(PATIENCE_SECONDS):
            while any(self.calls[kind] < least for kind, least in wanted.items()):
                await asyncio.sleep(0.05)

    async def _keep(self, kind: str, call: Call, over: asyncio.Event) -> None:
        while not over.is_set():
            self.calls[kind] += 1
            try:
                await call()
            except _FAILURES as error:
                self.failures.append(Failure(kind, error))
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _PAUSE_SECONDS)


@asynccontextmanager
async def a_tenant(fleet: Fleet) -> AsyncIterator[Tenant]:
    """Yields a new tenant of the largest plan, its deployments ready."""
    async with fleet.through_the_door() as api:
        created = await AuthServiceStub(api).CreateTenant(
            auth.CreateTenantRequest(request_id=fresh_id(), name="Acme", plan=auth.PLAN_SCALE),
            metadata=bearer(fleet.operator_key),
        )
        app = await _deployment(api, created.key, database=True)
        other = await _deployment(api, created.key, database=False)
        issued, former = [await _key(api, created.key, app.deployment_id) for _ in range(2)]
        await AuthServiceStub(api).RevokeKey(
            auth.RevokeKeyRequest(key_id=former.key_id), metadata=bearer(created.key)
        )
        yield Tenant(fleet, api, created.key, app, other, issued.key, former.key)


async def _key(api: grpc.aio.Channel, key: str, deployment_id: str) -> auth.IssueKeyResponse:
    return await AuthServiceStub(api).IssueKey(
        auth.IssueKeyRequest(request_id=fresh_id(), deployment_id=deployment_id),
        metadata=bearer(key),
    )


async def _deployment(api: grpc.aio.Channel, key: str, *, database: bool) -> provisioner.Deployment:
    stub = ProvisionerServiceStub(api)
    created = await stub.CreateDeployment(
        provisioner.CreateDeploymentRequest(
            request_id=fresh_id(), name="notes", mcp=database, database=database
        ),
        metadata=bearer(key),
    )
    await finished(stub, created.operation, bearer(key))
    return created.deployment


async def finished(
    stub: ProvisionerServiceStub,
    operation: provisioner.Operation,
    metadata: tuple[tuple[str, str], ...],
) -> None:
    """Returns when it has succeeded; a stream that its server ends is begun anew."""
    request = provisioner.WaitOperationRequest(operation_id=operation.operation_id)
    while operation.state == provisioner.OPERATION_STATE_RUNNING:
        try:
            stream = stub.WaitOperation(request, metadata=metadata, timeout=PATIENCE_SECONDS)
            async for change in stream:
                operation = change.operation
        except grpc.aio.AioRpcError as error:
            # As the command line does: another replica knows as well.
            assert error.code() is grpc.StatusCode.UNAVAILABLE, error  # noqa: PT017 others are not
            assert "stopping" in str(error.details()), error  # noqa: PT017
    assert operation.state == provisioner.OPERATION_STATE_SUCCEEDED, operation


class Notes:
    """Writes each of its words once, into a table of its own, through the door."""

    def __init__(self, agent: mcp.Client) -> None:
        self._agent = agent
        self._table = f"notes_{secrets.token_hex(4)}"
        self.acknowledged: list[str] = []

    async def make(self) -> None:
        """Makes the table."""
        await self._told(f"CREATE TABLE {self._table} (word text NOT NULL)")

    async def write(self) -> None:
        """Writes one more."""
        word = secrets.token_hex(8)
        await self._told(f"INSERT INTO {self._table} VALUES ('{word}')")
        self.acknowledged.append(word)

    async def read(self) -> list[str]:
        """Returns every word."""
        answer = await self._agent.call_tool("query", {"sql": f"SELECT word FROM {self._table}"})
        assert not answer.is_error, answer.structured_content
        content = answer.structured_content
        assert isinstance(content, dict)
        return [row["word"] for row in content["rows"]]

    async def _told(self, sql: str) -> None:
        answer = await self._agent.call_tool("execute", {"sql": sql})
        assert not answer.is_error, answer.structured_content


@dataclass(frozen=True)
class Traffic:
    """The load of one tenant, and what it has written."""

    load: Load
    notes: Notes


@asynccontextmanager
async def every_kind_of_traffic(tenant: Tenant) -> AsyncIterator[Traffic]:
    """Yields callers at the door, of the API, between services, and of streams; none calls yet."""
    async with AsyncExitStack() as stack:
        notes = Notes(await stack.enter_async_context(tenant.agent()))
        client = await stack.enter_async_context(tenant.at_the_door())
        await notes.make()
        load = Load()
        load.add(at_the_door(client, notes, tenant.former_key))
        load.add(over_the_api(tenant))
        load.add(await between_services(tenant, stack))
        yield Traffic(load, notes)


def at_the_door(client: httpx2.AsyncClient, notes: Notes, former_key: str) -> dict[str, Call]:
    """Returns what a deployment's own callers do, and who is none any more."""

    async def get(due: int, **headers: str) -> None:
        answer = await client.get("/llms.txt", headers=headers)
        if answer.status_code != due:
            raise RefusedError(answer)

    return {
        "door get": lambda: get(200),
        "door stranger": lambda: get(401, authorization="Bearer no key"),
        "door former": lambda: get(401, authorization=f"Bearer {former_key}"),
        "door mcp": notes.write,
    }


def over_the_api(tenant: Tenant) -> dict[str, Call]:
    """Returns what a tenant does, by a client that repeats nothing itself."""
    metadata, api = tenant.metadata, tenant.api
    keys, limits = AuthServiceStub(api), RatelimitServiceStub(api)
    deployments, connections = ProvisionerServiceStub(api), CredentialsServiceStub(api)
    usage = ratelimit.GetUsageRequest(deployment_id=tenant.app.deployment_id)
    numbers = itertools.count()
    wait: dict[str, Any] = {"metadata": metadata, "timeout": PATIENCE_SECONDS}

    def put() -> Awaitable[object]:
        return deployments.PutSecret(
            provisioner.PutSecretRequest(
                deployment_id=tenant.app.deployment_id, name="WORD", value=f"{next(numbers)}"
            ),
            **wait,
        )

    async def comes_and_goes() -> None:
        named = tenant.other.deployment_id
        suspended = await deployments.SuspendDeployment(
            provisioner.SuspendDeploymentRequest(deployment_id=named), **wait
        )
        await finished(deployments, suspended.operation, metadata)
        resumed = await deployments.ResumeDeployment(
            provisioner.ResumeDeploymentRequest(deployment_id=named), **wait
        )
        await finished(deployments, resumed.operation, metadata)

    return {
        "api auth": lambda: keys.IssueKey(auth.IssueKeyRequest(request_id=fresh_id()), **wait),
        "api ratelimit": lambda: limits.GetUsage(usage, **wait),
        "api credentials": lambda: connections.ListConnections(
            credentials.ListConnectionsRequest(), **wait
        ),
        "api provisioner": put,
        "api operations": comes_and_goes,
    }


async def between_services(tenant: Tenant, stack: AsyncExitStack) -> dict[str, Call]:
    """Returns what services ask each other, by the channels that they have."""
    fleet, known = tenant.fleet, digest(tenant.app_key)
    limits = CoalescedLimits(await fleet.channel("ratelimit", "app_proxy"), PATIENCE_SECONDS)
    auth_channel = await fleet.channel("auth", "app_proxy")
    resolver = await stack.enter_async_context(open_key_resolver(auth_channel))
    databases = ProvisionerServiceStub(await fleet.channel("provisioner", "app_proxy"))
    routes = RoutingServiceStub(await fleet.channel("app_proxy", "provisioner"))
    loans = CredentialsServiceStub(await fleet.channel("credentials", "provisioner"))
    wanted = provisioner.GetDatabaseConnectionRequest(role=provisioner.DATABASE_ROLE_READER)
    by_key: Any = {"metadata": bearer(tenant.app_key), "timeout": PATIENCE_SECONDS}
    by_tenant: Any = {"metadata": tenant.metadata, "timeout": PATIENCE_SECONDS}
    lent = credentials.ResumeDeploymentRequest(deployment_id=tenant.app.deployment_id)
    route = routing.GetRouteRequest(host=tenant.app.host)

    async def acquire() -> None:
        taken = await limits.acquire(known)
        assert taken.decision == ratelimit.DECISION_ALLOWED, taken

    async def resolve() -> None:
        unknown, principal = await resolver.resolve_all([secrets.token_bytes(32), known])
        assert unknown is None
        assert principal is not None

    return {
        "app_proxy to ratelimit": acquire,
        "app_proxy to auth": resolve,
        "app_proxy to provisioner": lambda: databases.GetDatabaseConnection(wanted, **by_key),
        "provisioner to app_proxy": lambda: routes.GetRoute(route, **by_tenant),
        "provisioner to credentials": lambda: loans.ResumeDeployment(lent, **by_tenant),
    }
