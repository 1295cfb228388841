"""ratelimit as its callers see it: concurrent calls as one batch, or calls leased in advance."""

import asyncio
from collections.abc import Sequence
from typing import Final

import grpc
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub

from services.shared.coalesce import Coalescer
from services.shared.status import translated

# The door answers 503 rather than wait longer for an admission: Envoy itself waits two seconds.
PATIENCE_SECONDS: Final = 1.0


class CoalescedLimits:
    """Takes, leases and gives back; what several ask for at once travels as one batch.

    Each raises UnavailableError when ratelimit is away: then nothing is known and nothing is open.
    """

    def __init__(self, channel: grpc.aio.Channel, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._stub = RatelimitServiceStub(channel)
        self._acquire: Coalescer[tuple[bytes, int], pb.AcquireResult] = Coalescer(
            self._acquire_all, flights=1
        )
        self._lease: Coalescer[tuple[bytes, int], tuple[pb.LeaseResult, float]] = Coalescer(
            self._lease_all, flights=1
        )
        self._return: Coalescer[tuple[str, int], int] = Coalescer(self._return_all, flights=1)

    async def acquire(self, key_digest: bytes, cost: int = 1) -> pb.AcquireResult:
        """Takes `cost` calls of the deployment whose key has the digest; 0 only tells."""
        return await self._acquire((key_digest, cost))

    async def lease(self, key_digest: bytes, calls: int) -> tuple[pb.LeaseResult, float]:
        """Leases up to `calls`; returns the answer and when it was asked for (loop time)."""
        return await self._lease((key_digest, calls))

    async def give_back(self, lease_id: str, unused: int) -> int:
        """Returns how many of the unused calls of the lease came back."""
        return await self._return((lease_id, unused))

    async def _acquire_all(self, items: Sequence[tuple[bytes, int]]) -> Sequence[pb.AcquireResult]:
        request = pb.AcquireRequest(
            items=[pb.AcquireItem(key_digest=digest, cost=cost) for digest, cost in items]
        )
        with translated():
            return (await self._stub.Acquire(request, timeout=self._patience)).results

    async def _lease_all(
        self, items: Sequence[tuple[bytes, int]]
    ) -> list[tuple[pb.LeaseResult, float]]:
        request = pb.LeaseRequest(
            items=[pb.LeaseItem(key_digest=digest, calls=calls) for digest, calls in items]
        )
        sent = asyncio.get_running_loop().time()
        with translated():
            answer = await self._stub.Lease(request, timeout=self._patience)
        return [(result, sent) for result in answer.results]

    async def _return_all(self, items: Sequence[tuple[str, int]]) -> Sequence[int]:
        request = pb.ReturnLeaseRequest(
            items=[pb.ReturnLeaseItem(lease_id=name, unused=unused) for name, unused in items]
        )
        with translated():
            return (await self._stub.ReturnLease(request, timeout=self._patience)).returned
