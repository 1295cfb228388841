"""A resolver of keys over real mTLS: its questions are counted, answers can be kept back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.channel import open_channel
from services.shared.clock import steady_seconds
from services.shared.key_resolver import KeyResolver, watching
from services.shared.keyformat import digest
from tests.mesh import PATIENCE_SECONDS, Mesh


class Hold:
    """A place on the way where answers can be kept back, however old they get there."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    def close(self) -> None:
        """Keeps back every answer from now on."""
        self._open.clear()

    def open(self) -> None:
        """Lets them go."""
        self._open.set()

    async def release(self) -> None:
        """Lets those go that are kept back now, and none that come after."""
        self._open.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.waiting:
                await asyncio.sleep(0)
        self._open.clear()

    async def passed(self) -> None:
        """Returns once the way is free."""
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1

    async def holds(self, count: int = 1) -> None:
        """Returns once so many answers are kept back."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.waiting < count:
                await asyncio.sleep(0)


@dataclass
class Clock:
    """A steady clock that a test can stop, and set forward: so does a process that was paused."""

    ahead: float = 0.0
    # Set: no time passes but what a test sets forward, so that a slow machine ends no lease.
    stopped_at: float | None = None

    def __call__(self) -> float:
        running = steady_seconds() if self.stopped_at is None else self.stopped_at
        return running + self.ahead

    @classmethod
    def stopped(cls) -> "Clock":
        """Returns a clock that stands still."""
        return cls(stopped_at=steady_seconds())


@dataclass
class Watched:
    """auth's own stub, how often it was asked, and where its answers can be kept back."""

    stub: Any
    batches: list[int] = field(default_factory=list)
    answers: Hold = field(default_factory=Hold)
    acknowledgements: Hold = field(default_factory=Hold)
    acknowledged: int = 0
    # Events of the stream, beats among them.
    heard: int = 0
    # Revocations that are announced get lost.
    deaf: bool = False

    async def ResolveKeys(self, request: pb2.ResolveKeysRequest) -> Any:  # noqa: N802
        self.batches.append(len(request.digests))
        answer = await self.stub.ResolveKeys(request)
        await self.answers.passed()
        return answer

    async def AcknowledgeRevocations(  # noqa: N802
        self,
        request: pb2.AcknowledgeRevocationsRequest,
        timeout: float,  # noqa: ASYNC109 as the stub has it
    ) -> Any:
        answer = await self.stub.AcknowledgeRevocations(request, timeout=timeout)
        self.acknowledged += 1
        await self.acknowledgements.passed()
        return answer

    def WatchRevocations(self, request: pb2.WatchRevocationsRequest) -> Any:  # noqa: N802
        return _Heard(self, self.stub.WatchRevocations(request))


@dataclass
class _Heard:
    """A stream of revocations, as far as it is heard."""

    watched: Watched
    stream: Any

    async def __aiter__(self) -> AsyncIterator[pb2.WatchRevocationsResponse]:
        async for event in self.stream:
            self.watched.heard += 1
            if not self.watched.deaf:
                yield event

    def cancel(self) -> None:
        self.stream.cancel()


@asynccontextmanager
async def resolving(
    mesh: Mesh, clock: Clock | None = None
) -> AsyncIterator[tuple[KeyResolver, Watched]]:
    """Yields a resolver as the services have it, and what it asks through."""
    settings = mesh.settings["ratelimit"]
    async with open_channel(settings, "auth", settings.auth_target) as channel:
        watched = Watched(AuthServiceStub(channel))
        resolver = KeyResolver(watched, clock or Clock())  # type: ignore[arg-type]
        async with watching(resolver):
            yield resolver, watched


async def remembered(resolver: KeyResolver, watched: Watched, key: str) -> None:
    """Returns once the key is answered from memory."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            before = len(watched.batches)
            assert await resolver.resolve(digest(key)) is not None
            if len(watched.batches) == before:
                return
            await asyncio.sleep(0.02)
