"""Whose a key is: asked of auth, remembered, and trusted only under a lease (P-37).

docs/decisions/0009-leases-of-trust.md says why the rules are these, and what they promise.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.background import background
from services.shared.clock import SteadyClock, steady_seconds
from services.shared.coalesce import Coalescer
from services.shared.ids import KeyId, random_text
from services.shared.key_cache import KeyCache, Remembered
from services.shared.key_figures import CacheFigures
from services.shared.principal import Principal
from services.shared.principal_messages import read_principal
from services.shared.status import translated

# Acknowledged is with each beat of the stream, so that auth writes together what its watchers say;
# without a beat after this. And how long one may take, so that another replica of auth can be asked
# before the lease has run out.
_PERIOD_SECONDS = 0.4
_PATIENCE_SECONDS = 0.35
_RETRY_SECONDS = 0.05
# Who asks for no key for so long needs no trust: the next call asks auth, and is leased again.
_LINGER_SECONDS = 5.0
# A stream that is silent for longer than several beats is begun anew, maybe elsewhere.
_SILENCE_SECONDS = 1.5
# Of a lease that is trusted: the rest is for clocks that run at different speeds.
_TRUSTED_PART = 0.95
_MOST_USED = 1_000
_MINUTE_SECONDS = 60


@dataclass(frozen=True, slots=True)
class _Answer:
    principal: Principal | None
    # The last revocation that it takes into account.
    sequence: int


class KeyResolver:
    """Answers whose key a digest is of.

    What is remembered is used only while auth leases this process trust in it, and an answer that
    was asked for before a call began only when it is as new as what was forgotten since.
    """

    def __init__(
        self, stub: "AuthServiceStub", steady: SteadyClock = steady_seconds, most: int = 100_000
    ) -> None:
        self._stub = stub
        self._steady = steady
        self._cache = KeyCache(steady, most)
        self._watcher_id = random_text()
        # All that the revocations up to this one name is forgotten.
        self._forgotten = 0
        self._trusted_until = float("-inf")
        # When auth was last heard on the stream of revocations.
        self._heard_at = steady()
        self._hits = 0
        self._misses = 0
        self._hurry = asyncio.Event()
        self._asked_at = float("-inf")
        self._wanted = asyncio.Event()
        self._used: set[KeyId] = set()
        # Flights that have not departed yet, and those that have.
        self._boarding: dict[bytes, asyncio.Future[_Answer]] = {}
        self._flying: dict[bytes, asyncio.Future[_Answer]] = {}
        self._ask: Coalescer[bytes, _Answer] = Coalescer(self._ask_batch)

    async def resolve(self, key_digest: bytes) -> Principal | None:
        """Returns whose key has the digest; None when no valid key has.

        Raises:
            UnavailableError: auth cannot be asked.
        """
        entry = self._remembered(key_digest)
        if entry is not None:
            return _unexpired(entry.principal)
        return await self._unremembered(key_digest)

    async def resolve_all(self, digests: Sequence[bytes]) -> list[Principal | None]:
        """Returns the answer to each digest, in order; what is unknown travels as one batch.

        Raises:
            UnavailableError: auth cannot be asked.
        """
        # Each once, and without a coroutine where nothing is waited for: batches are hot.
        known: dict[bytes, Principal | None] = {}
        missing = []
        for key_digest in dict.fromkeys(digests):
            entry = self._remembered(key_digest)
            if entry is None:
                missing.append(key_digest)
            else:
                known[key_digest] = _unexpired(entry.principal)
        if missing:
            late = await asyncio.gather(*map(self._unremembered, missing))
            known.update(zip(missing, late, strict=True))
        return [known[key_digest] for key_digest in digests]

    def _remembered(self, key_digest: bytes) -> Remembered | None:
        """Returns what may be trusted of what is remembered, and notes that the key was used."""
        now = self._asked_at = self._steady()
        if not self._wanted.is_set():
            self._wanted.set()
        entry = self._cache.get(key_digest, now) if now <= self._trusted_until else None
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        if entry.principal is not None:
            minute = int(time.time() // _MINUTE_SECONDS)
            if entry.minute != minute and self._note(entry.principal):
                entry.minute = minute
        return entry

    async def _unremembered(self, key_digest: bytes) -> Principal | None:
        principal = (await self._asked(key_digest)).principal
        if principal is not None:
            self._note(principal)
        return _unexpired(principal)

    async def _asked(self, key_digest: bytes) -> _Answer:
        """Returns an answer that knows of every revocation that was complete when this was called.

        That is so of one that is asked for from now on. It is so of an earlier one, too, when at
        its arrival there is trust, which a complete revocation leaves only to those who have
        forgotten what it names, and the answer is as new as what is forgotten.
        """
        earlier = self._flying.get(key_digest)
        if earlier is not None and key_digest not in self._boarding and self._trusts():
            # Shielded: one caller who leaves does not take the answer from the others.
            answer = await asyncio.shield(earlier)
            if self._trusts() and answer.sequence >= self._forgotten:
                return answer
        flight = self._boarding.get(key_digest)
        if flight is None:
            flight = asyncio.ensure_future(self._ask(key_digest))
            self._boarding[key_digest] = flight
            flight.add_done_callback(lambda done: self._landed(key_digest, done))
        return await asyncio.shield(flight)

    def _landed(self, key_digest: bytes, flight: "asyncio.Future[_Answer]") -> None:
        for flights in (self._boarding, self._flying):
            if flights.get(key_digest) is flight:
                del flights[key_digest]
        if not flight.cancelled():
            # Looked at here, since every caller may have left.
            flight.exception()

    async def _ask_batch(self, digests: Sequence[bytes]) -> list[_Answer]:
        for key_digest in digests:
            if (flight := self._boarding.pop(key_digest, None)) is not None:
                self._flying[key_digest] = flight
        with translated():
            response = await self._stub.ResolveKeys(
                auth_pb2.ResolveKeysRequest(digests=list(digests))
            )
        answers = [
            _Answer(read_principal(each), response.sequence) for each in response.resolutions
        ]
        if self._trusts() and response.sequence >= self._forgotten:
            for key_digest, answer in zip(digests, answers, strict=True):
                self._cache.put(key_digest, answer.principal)
        return answers

    def _trusts(self) -> bool:
        return self._steady() <= self._trusted_until

    def _note(self, principal: Principal) -> bool:
        if len(self._used) >= _MOST_USED:
            return False
        self._used.add(principal.key_id)
        return True

    @property
    def figures(self) -> CacheFigures:
        """What became of the questions so far, and what is remembered now."""
        return CacheFigures(
            self._hits,
            self._misses,
            len(self._cache),
            self._cache.forgotten,
            self._steady() - self._heard_at,
            self._trusts(),
        )

    async def keep_leased(self) -> None:
        """Acknowledges what was forgotten, one call after the other, while keys are asked for."""
        lost = False
        while True:
            if self._steady() > self._asked_at + _LINGER_SECONDS:
                self._wanted.clear()
                await self._wanted.wait()
            self._hurry.clear()
            acknowledged = self._forgotten
            try:
                await self._acknowledge()
            except grpc.aio.AioRpcError as error:
                if not lost:
                    structlog.get_logger().warning("no lease on keys", code=error.code().name)
                lost = True
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            lost = False
            if self._forgotten == acknowledged:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PERIOD_SECONDS):
                        await self._hurry.wait()

    async def _acknowledge(self) -> None:
        # Read before anything is sent: whatever takes long after this only shortens the trust.
        sent_at = self._steady()
        used, self._used = self._used, set()
        try:
            response = await self._stub.AcknowledgeRevocations(
                auth_pb2.AcknowledgeRevocationsRequest(
                    watcher_id=self._watcher_id, sequence=self._forgotten, used_key_ids=used
                ),
                timeout=_PATIENCE_SECONDS,
            )
        except grpc.aio.AioRpcError:
            if len(self._used) + len(used) <= _MOST_USED:
                self._used |= used
            raise
        self._forget(response)
        length = response.lease.ToTimedelta().total_seconds() * _TRUSTED_PART
        self._trusted_until = sent_at + length

    def _forget(self, response: auth_pb2.AcknowledgeRevocationsResponse) -> None:
        if response.forget_all:
            self._cache.clear()
            # Also back: auth may have lost its latest revocations, and counts anew.
            self._forgotten = response.sequence
            return
        for revocation in response.revocations:
            for key_id in revocation.key_ids:
                self._cache.forget(KeyId(key_id))
        self._forgotten = max(self._forgotten, response.sequence)

    async def follow(self) -> None:
        """Hears of revocations for ever, so that they are forgotten and acknowledged at once."""
        while True:
            try:
                await self._follow()
            except grpc.aio.AioRpcError as error:
                structlog.get_logger().info("revocation stream ended", code=error.code().name)
            await asyncio.sleep(_RETRY_SECONDS)

    async def _follow(self) -> None:
        stream: Any = self._stub.WatchRevocations(auth_pb2.WatchRevocationsRequest())
        events = aiter(stream)
        try:
            while True:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    event = await anext(events)
                self._hear(event)
        except (TimeoutError, StopAsyncIteration):
            return
        finally:
            stream.cancel()

    def _hear(self, event: auth_pb2.WatchRevocationsResponse) -> None:
        self._heard_at = self._steady()
        self._hurry.set()
        if event.sequence <= self._forgotten:
            return
        if event.sequence == self._forgotten + 1 and event.key_ids:
            for key_id in event.key_ids:
                self._cache.forget(KeyId(key_id))
        else:
            # What came between was missed.
            self._cache.clear()
        self._forgotten = event.sequence


def _unexpired(principal: Principal | None) -> Principal | None:
    if principal is None or principal.expires_at is None:
        return principal
    return principal if principal.expires_at.timestamp() > time.time() else None


@asynccontextmanager
async def watching(resolver: KeyResolver) -> AsyncIterator[KeyResolver]:
    """Yields the resolver while it is kept leased and hears of revocations."""
    async with background(resolver.keep_leased(), resolver.follow()):
        yield resolver
