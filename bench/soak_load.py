"""The load of a soak: everything that tenants do, and much that they begin and do not wait for.

Every worker goes round for ever, one thing after the other. Of all calls one in twelve is given a
deadline that it cannot keep, one in twelve is cancelled, and of requests over HTTP one in twelve is
left by its sender. What comes back is counted by what was done and how it ended.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx2
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb2
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit_pb2
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from google.protobuf.message import Message
from mcp import MCPError

from bench.stack import CALL_SECONDS, Customer, bearer, fresh_id, tell
from deploy.local.ports import LOOPBACK
from deploy.local.story.visitor import Visitor, visiting
from services.shared.keyformat import new_key
from services.shared.principal import KeyKind

ALIASES = 4
_HASTE = 1 / 12
# Not more, lest most of a connection's calls be cancelled: the door closes such a connection.
_AT_ONCE = 8
# How a call may end that was made as it should be: busy is what limits and a full queue say.
_BUSY = frozenset({grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE})

Act = Callable[[], Awaitable[None]]


@dataclass(slots=True)
class Tally:
    """How often what ended how, and what must not have happened."""

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def note(self, what: str, how: str) -> None:
        """Counts one that ended as it may."""
        self.ended[f"{what} {how}"] += 1

    def complain(self, what: str, found: object) -> None:
        """Keeps what must not have happened."""
        self.note(what, "wrong")
        if not self.wrong:
            tell(f"wrong: {what}: {found}")
        self.wrong.append(f"{what}: {found}"[:500])

    @property
    def total(self) -> int:
        """How many there were."""
        return self.ended.total()


@dataclass(frozen=True, slots=True)
class Site:
    """A deployment that is used, with its key."""

    tenant: Customer
    credentials: CredentialsServiceStub
    ratelimit: RatelimitServiceStub
    deployment_id: str
    host: str
    port: int
    key: str = field(repr=False)


class Load:
    """The workers of one site."""

    def __init__(self, site: Site, provider: str, tally: Tally, seed: int) -> None:
        self._site = site
        self._provider = provider
        self._tally = tally
        self._chance = random.Random(seed)  # noqa: S311 it decides who is in a haste, no more

    async def run(self) -> None:
        """Goes on until it is cancelled."""
        site = self._site
        async with (
            visiting(site.host, site.port, site.key) as known,
            visiting(site.host, site.port, new_key(KeyKind.DEPLOYMENT)) as stranger,
            asyncio.TaskGroup() as workers,
        ):
            for act, pause in (
                (lambda: self._visit(known, 200), 0.02),
                (lambda: self._visit(stranger, 401), 0.1),
                (self._leave, 0.1),
                (lambda: self._agent(known), 0.2),
                (self._read, 0.03),
                (self._vend, 0.05),
                (self._keys, 0.3),
                (self._secrets, 0.3),
                (self._connection, 0.5),
                (self._burst, 1.0),
            ):
                workers.create_task(_again(act, pause))

    async def _visit(self, visitor: Visitor, expected: int) -> None:
        """Asks for a page, once in a while without waiting for it."""
        try:
            async with asyncio.timeout(self._patience(CALL_SECONDS)):
                answer = await visitor.get("/llms.txt")
        except (TimeoutError, httpx2.TransportError):
            self._tally.note("visit", "left")
            return
        if answer.status_code in {expected, 429, 503}:
            self._tally.note("visit", str(answer.status_code))
        else:
            self._tally.complain("visit", answer.status_code)

    async def _leave(self) -> None:
        """Sends requests, some of them in part, and is gone."""
        site = self._site
        head = (
            f"POST /mcp HTTP/1.1\r\nhost: {site.host}\r\nauthorization: Bearer {site.key}\r\n"
            "content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
            "content-length: 200\r\n\r\n{"
        ).encode()
        _, writer = await asyncio.open_connection(LOOPBACK, site.port)
        writer.write(head[: self._chance.randint(1, len(head))])
        await asyncio.sleep(self._chance.uniform(0, 0.05))
        writer.transport.abort()
        self._tally.note("connection", "left")

    async def _agent(self, visitor: Visitor) -> None:
        """Connects as an agent, asks a few things, some without waiting, and disconnects."""
        try:
            async with visitor.agent() as agent:
                for number in range(5):
                    async with asyncio.timeout(self._patience(CALL_SECONDS)):
                        answer = await agent.call("query", "SELECT $1::int AS n", number)
                    self._tally.note("agent", "refused" if answer.is_error else "answered")
        except (TimeoutError, httpx2.HTTPError, MCPError, ExceptionGroup):
            self._tally.note("agent", "left")

    async def _read(self) -> None:
        """Reads what there is, of each service."""
        site, chance = self._site, self._chance
        tenant = site.tenant
        method, request = chance.choice(
            (
                (tenant.auth.ListKeys, auth_pb2.ListKeysRequest(page_size=10)),
                (tenant.auth.GetTenant, auth_pb2.GetTenantRequest()),
                (tenant.auth.ListAuditEvents, auth_pb2.ListAuditEventsRequest(page_size=10)),
                (
                    tenant.provisioner.ListDeployments,
                    provisioner_pb2.ListDeploymentsRequest(page_size=10),
                ),
                (
                    tenant.provisioner.GetDeployment,
                    provisioner_pb2.GetDeploymentRequest(deployment_id=site.deployment_id),
                ),
                (
                    site.ratelimit.GetUsage,
                    ratelimit_pb2.GetUsageRequest(deployment_id=site.deployment_id),
                ),
                (site.credentials.ListConnections, credentials_pb2.ListConnectionsRequest()),
                (site.credentials.ListBindings, credentials_pb2.ListBindingsRequest()),
            )
        )
        await self._call("read", method, request)

    async def _vend(self) -> None:
        many = self._chance.choice((1, 1, 1, ALIASES))
        items = [
            credentials_pb2.VendItem(alias=alias(number), purpose="soak") for number in range(many)
        ]
        request = credentials_pb2.VendRequest(items=items)
        await self._call("vend", self._site.credentials.Vend, request, self._site.key)

    async def _keys(self) -> None:
        """Issues a key, uses it once, and revokes it."""
        site, auth = self._site, self._site.tenant.auth
        request = auth_pb2.IssueKeyRequest(
            request_id=fresh_id(), deployment_id=site.deployment_id, name="soak"
        )
        issued = await self._call("key", auth.IssueKey, request)
        if issued is None:
            return
        await self._call(
            "key", site.ratelimit.GetUsage, ratelimit_pb2.GetUsageRequest(), issued.key
        )
        await self._call("key", auth.RevokeKey, auth_pb2.RevokeKeyRequest(key_id=issued.key_id))

    async def _secrets(self) -> None:
        site = self._site
        name = f"SOAK_{self._chance.randint(1, 5)}"
        put = provisioner_pb2.PutSecretRequest(
            deployment_id=site.deployment_id, name=name, generate_length=32
        )
        await self._call("secret", site.tenant.provisioner.PutSecret, put)
        environment = provisioner_pb2.GetEnvironmentRequest()
        await self._call("secret", site.tenant.provisioner.GetEnvironment, environment, site.key)

    async def _connection(self) -> None:
        """Makes a connection and deletes it."""
        site = self._site
        request = credentials_pb2.CreateConnectionRequest(
            request_id=fresh_id(),
            provider=self._provider,
            name="soak",
            static_token=credentials_pb2.StaticToken(token=fresh_id()),
        )
        made = await self._call("connection", site.credentials.CreateConnection, request)
        if made is None:
            return
        delete = credentials_pb2.DeleteConnectionRequest(
            connection_id=made.connection.connection_id
        )
        await self._call("connection", site.credentials.DeleteConnection, delete)

    async def _burst(self) -> None:
        """Begins several calls at one moment, and ends them all."""
        site = self._site
        calls = [
            site.tenant.auth.GetTenant(
                auth_pb2.GetTenantRequest(), metadata=site.tenant.metadata, timeout=CALL_SECONDS
            )
            for _ in range(_AT_ONCE)
        ]
        await asyncio.sleep(self._chance.uniform(0, 0.02))
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        self._tally.ended["burst cancelled"] += len(calls)

    async def _call(
        self, what: str, method: Any, request: Message, key: str | None = None
    ) -> Any | None:
        """Returns the answer; None when none was waited for, or the mesh was busy."""
        metadata = self._site.tenant.metadata if key is None else bearer(key)
        call = method(request, metadata=metadata, timeout=self._patience(CALL_SECONDS))
        if self._chance.random() < _HASTE:
            await asyncio.sleep(self._chance.uniform(0, 0.02))
            call.cancel()
        try:
            answer = await call
        except asyncio.CancelledError:
            # Of the call or of the worker: only the latter is asked to end.
            if not call.cancelled() or _ends():
                raise
            self._tally.note(what, "cancelled")
        except grpc.aio.AioRpcError as error:
            self._failed(what, error)
        else:
            self._tally.note(what, "answered")
            return answer
        return None

    def _failed(self, what: str, error: grpc.aio.AioRpcError) -> None:
        code = error.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._tally.note(what, "expired")
        elif code is grpc.StatusCode.CANCELLED:
            self._tally.note(what, "cancelled")
        elif code in _BUSY:
            self._tally.note(what, "busy")
        else:
            self._tally.complain(what, f"{code} {error.details()}")

    def _patience(self, usual: float) -> float:
        """Returns a deadline in seconds; once in a while one that cannot be kept."""
        return self._chance.uniform(0.0005, 0.02) if self._chance.random() < _HASTE else usual


async def coming_and_going(tenant: Customer, tally: Tally, pause: float) -> None:
    """Makes a deployment with a database, deletes it, and waits, for ever."""
    while not _ends():
        made = await tenant.create("soak-passing")
        await tenant.finished(made.operation)
        tally.note("deployment", "made")
        await tenant.delete(made.deployment.deployment_id)
        tally.note("deployment", "deleted")
        await asyncio.sleep(pause)


def alias(number: int) -> str:
    """Returns the name under which the connection of that number is lent."""
    return f"own-{number}"


def _ends() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _again(act: Act, pause: float) -> None:
    # Asked, since what is cancelled in the middle of leaving an agent does not always hear of it.
    while not _ends():
        await act()
        await asyncio.sleep(pause)
