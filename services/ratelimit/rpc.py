"""`bulkhead.ratelimit.v1` in the words of the domain."""

from datetime import timedelta
from typing import Any

from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as pb
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceServicer
from google.protobuf import duration_pb2, timestamp_pb2

from services.ratelimit.domain import (
    Decision,
    Item,
    Limits,
    Reading,
    Usage,
    quota_remaining,
)
from services.ratelimit.months import month_of, next_month
from services.ratelimit.service import Ratelimit
from services.shared.principal import current_principal


class RatelimitServicer(RatelimitServiceServicer):
    """Serves the two methods; the interceptors have checked access and turn errors into status."""

    def __init__(self, ratelimit: Ratelimit) -> None:
        self._ratelimit = ratelimit

    async def Acquire(self, request: pb.AcquireRequest, context: Any) -> pb.AcquireResponse:
        """Returns one decision per item, in order."""
        items = [Item(item.key_digest, item.cost) for item in request.items]
        results = await self._ratelimit.acquire(items)
        return pb.AcquireResponse(results=[_result(result) for result in results])

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:
        """Returns what the deployment has used this month, and its limits."""
        usage = await self._ratelimit.usage(current_principal(), request.deployment_id)
        return _usage(usage)


def _result(result: tuple[Limits, Reading] | None) -> pb.AcquireResult:
    if result is None:
        return pb.AcquireResult(decision=_decision(Decision.KEY_INVALID))
    limits, reading = result
    return pb.AcquireResult(
        decision=_decision(reading.decision),
        retry_after=_duration(reading.retry_after),
        quota_remaining=quota_remaining(limits, reading.used),
        burst_remaining=reading.burst_remaining,
    )


def _usage(usage: Usage) -> pb.GetUsageResponse:
    limits, reading = usage.limits, usage.reading
    reset_time = timestamp_pb2.Timestamp()
    reset_time.FromDatetime(next_month(reading.at))
    return pb.GetUsageResponse(
        deployment_id=usage.deployment_id,
        month=month_of(reading.at),
        used=reading.used,
        limit=limits.monthly,
        remaining=quota_remaining(limits, reading.used),
        reset_time=reset_time,
        rate_per_second=limits.ceiling.rate_per_second,
        burst=limits.ceiling.burst,
    )


def _decision(decision: Decision) -> pb.Decision.ValueType:
    return pb.Decision.Value(f"DECISION_{decision.name}")


def _duration(wait: timedelta | None) -> duration_pb2.Duration | None:
    if wait is None:
        return None
    duration = duration_pb2.Duration()
    duration.FromTimedelta(wait)
    return duration
