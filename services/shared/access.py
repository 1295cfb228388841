"""Principal from key: resolved by auth, remembered briefly, forgotten when revoked."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from typing import Protocol

import grpc
import structlog
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import access_pb2

from services.shared.coalesce import Coalescer
from services.shared.errors import UnauthenticatedError
from services.shared.ids import DeploymentId, KeyId, TenantId
from services.shared.keyformat import DEFAULT_PREFIX, digest, well_formed
from services.shared.principal import Caller, KeyKind, Plan, Principal
from services.shared.status import translated

# Longer silence of the revocation stream than this, and nothing remembered is trusted.
FENCE_SECONDS = 1.0
_POSITIVE_SECONDS = 60.0
_NEGATIVE_SECONDS = 2.0
_MOST_REMEMBERED = 100_000
_RECONNECT_SECONDS = 0.1


class Authenticator(Protocol):
    """Tells whose a presented key is."""

    async def authenticate(self, bearer: str) -> Principal:
        """Returns for whom the bearer speaks.

        Raises:
            UnauthenticatedError: the key is not valid.
            UnavailableError: that cannot be found out now.
        """
        ...


class Auditor(Protocol):
    """Writes calls to the audit log of their tenant."""

    async def record(self, caller: Caller, method: str, resources: Mapping[str, str]) -> None:
        """Returns once the event is written.

        Raises:
            UnavailableError: it cannot be written now.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Remembered:
    principal: Principal | None
    until: float


class KeyCache:
    """What is known of keys, by digest, bounded in number and age."""

    def __init__(self, most: int = _MOST_REMEMBERED) -> None:
        self._most = most
        self._entries: OrderedDict[bytes, _Remembered] = OrderedDict()
        self._digests: dict[KeyId, bytes] = {}

    def get(self, key_digest: bytes) -> _Remembered | None:
        """Returns what is remembered of the key, unless it is too old."""
        entry = self._entries.get(key_digest)
        if entry is None or entry.until < time.monotonic():
            return None
        return entry

    def put(self, key_digest: bytes, principal: Principal | None) -> None:
        """Remembers an answer of auth, for its time."""
        seconds = _NEGATIVE_SECONDS if principal is None else _POSITIVE_SECONDS
        self._entries[key_digest] = _Remembered(principal, time.monotonic() + seconds)
        self._entries.move_to_end(key_digest)
        if principal is not None:
            self._digests[principal.key_id] = key_digest
        while len(self._entries) > self._most:
            _, oldest = self._entries.popitem(last=False)
            if oldest.principal is not None:
                self._digests.pop(oldest.principal.key_id, None)

    def forget(self, key_id: KeyId) -> None:
        """Forgets one key."""
        key_digest = self._digests.pop(key_id, None)
        if key_digest is not None:
            self._entries.pop(key_digest, None)

    def clear(self) -> None:
        """Forgets everything."""
        self._entries.clear()
        self._digests.clear()


class KeyResolver:
    """Answers whose key a digest is of.

    An answer is at most 60 s old, and never older than the last revocation heard of; when the
    stream of revocations is silent for longer than the fence, every answer is asked for anew.
    """

    def __init__(self, stub: "AuthServiceStub") -> None:
        self._stub = stub
        self._cache = KeyCache()
        self._sequence = 0
        self._heard_at = float("-inf")
        self._under_way: dict[bytes, asyncio.Future[Principal | None]] = {}
        self._ask: Coalescer[bytes, Principal | None] = Coalescer(self._ask_batch)

    async def resolve(self, key_digest: bytes) -> Principal | None:
        """Returns whose key has the digest; None when no valid key has.

        Raises:
            UnavailableError: auth cannot be asked.
        """
        if self._hears() and (entry := self._cache.get(key_digest)) is not None:
            return _unexpired(entry.principal)
        flight = self._under_way.get(key_digest)
        if flight is None:
            flight = asyncio.ensure_future(self._ask(key_digest))
            self._under_way[key_digest] = flight
            flight.add_done_callback(lambda done: self._landed(key_digest, done))
        # Shielded: one caller who leaves does not take the answer from the others.
        return _unexpired(await asyncio.shield(flight))

    async def resolve_all(self, digests: Sequence[bytes]) -> list[Principal | None]:
        """Returns the answer to each digest, in order; what is unknown travels as one batch."""
        return list(await asyncio.gather(*(self.resolve(item) for item in digests)))

    def _landed(self, key_digest: bytes, flight: "asyncio.Future[Principal | None]") -> None:
        self._under_way.pop(key_digest, None)
        if not flight.cancelled():
            # Looked at here, since every caller may have left.
            flight.exception()

    def _hears(self) -> bool:
        return time.monotonic() - self._heard_at <= FENCE_SECONDS

    async def _ask_batch(self, digests: Sequence[bytes]) -> list[Principal | None]:
        while True:
            with translated():
                answer = await self._stub.ResolveKeys(
                    auth_pb2.ResolveKeysRequest(digests=list(digests))
                )
            # A revocation may have overtaken the answer: then it says nothing any more.
            if answer.sequence >= self._sequence:
                break
        principals = [_principal(item) for item in answer.resolutions]
        if self._hears():
            for key_digest, principal in zip(digests, principals, strict=True):
                self._cache.put(key_digest, principal)
        return principals

    async def watch(self) -> None:
        """Follows the revocations for ever, forgetting what they name."""
        while True:
            try:
                await self._follow()
            except grpc.aio.AioRpcError as error:
                structlog.get_logger().warning("revocation stream lost", code=error.code().name)
            # What was revoked until the next stream begins is not known.
            self._heard_at = float("-inf")
            self._cache.clear()
            await asyncio.sleep(_RECONNECT_SECONDS)

    async def _follow(self) -> None:
        first = True
        async for event in self._stub.WatchRevocations(auth_pb2.WatchRevocationsRequest()):
            gap = event.sequence - self._sequence > (1 if event.key_ids else 0)
            if first or gap:
                self._cache.clear()
            for key_id in event.key_ids:
                self._cache.forget(KeyId(key_id))
            self._sequence = event.sequence
            self._heard_at = time.monotonic()
            first = False


@asynccontextmanager
async def open_key_resolver(channel: grpc.aio.Channel) -> AsyncIterator[KeyResolver]:
    """Yields a resolver that follows the revocations of auth behind `channel`."""
    resolver = KeyResolver(AuthServiceStub(channel))
    watching = asyncio.create_task(resolver.watch())
    try:
        yield resolver
    finally:
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching


class RemoteAuthenticator:
    """Authenticates by asking auth."""

    def __init__(self, resolver: KeyResolver, key_prefix: str = DEFAULT_PREFIX) -> None:
        self._resolver = resolver
        self._key_prefix = key_prefix

    async def authenticate(self, bearer: str) -> Principal:
        """Returns for whom the bearer speaks; see `Authenticator`."""
        if not well_formed(bearer, self._key_prefix):
            raise UnauthenticatedError
        principal = await self._resolver.resolve(digest(bearer))
        if principal is None:
            raise UnauthenticatedError
        return principal


class RemoteAuditor:
    """Records into auth's audit log, with the caller's own key."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AuthServiceStub(channel)

    async def record(self, caller: Caller, method: str, resources: Mapping[str, str]) -> None:
        """Returns once the event is written; see `Auditor`."""
        with translated():
            await self._stub.RecordAuditEvent(
                auth_pb2.RecordAuditEventRequest(
                    method=method, peer=caller.peer, resources=dict(resources)
                ),
                metadata=(("authorization", f"Bearer {caller.bearer}"),),
            )


def _unexpired(principal: Principal | None) -> Principal | None:
    if principal is None or principal.expires_at is None:
        return principal
    return principal if principal.expires_at.timestamp() > time.time() else None


def _principal(resolution: auth_pb2.Resolution) -> Principal | None:
    if not resolution.HasField("principal"):
        return None
    found = resolution.principal
    return Principal(
        key_id=KeyId(found.key_id),
        kind=KEY_KINDS[found.kind],
        tenant_id=TenantId(found.tenant_id) if found.tenant_id else None,
        deployment_id=DeploymentId(found.deployment_id) if found.deployment_id else None,
        scopes=frozenset(found.scopes),
        plan=PLANS[found.plan],
        expires_at=found.expire_time.ToDatetime(UTC) if found.HasField("expire_time") else None,
        bound_peer=found.bound_peer or None,
    )


KEY_KINDS: Mapping[int, KeyKind] = {
    access_pb2.KEY_KIND_OPERATOR: KeyKind.OPERATOR,
    access_pb2.KEY_KIND_TENANT: KeyKind.TENANT,
    access_pb2.KEY_KIND_DEPLOYMENT: KeyKind.DEPLOYMENT,
    access_pb2.KEY_KIND_CONNECTION: KeyKind.CONNECTION,
    access_pb2.KEY_KIND_SESSION: KeyKind.SESSION,
    access_pb2.KEY_KIND_JOB: KeyKind.JOB,
}
PLANS: Mapping[int, Plan] = {
    auth_pb2.PLAN_UNSPECIFIED: Plan.FREE,
    auth_pb2.PLAN_FREE: Plan.FREE,
    auth_pb2.PLAN_PRO: Plan.PRO,
    auth_pb2.PLAN_SCALE: Plan.SCALE,
}
