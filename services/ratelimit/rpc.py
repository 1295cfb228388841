"""`bulkhead.ratelimit.v1` in the words of the domain."""

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
from services.ratelimit.erasure import Erasure
from services.ratelimit.gcra import LEASE_US, MICROSECONDS
from services.ratelimit.leases import Grant, LeaseId, LeaseItem, Return
from services.ratelimit.months import next_month
from services.ratelimit.service import Ratelimit
from services.shared.fields import text
from services.shared.ids import DeploymentId
from services.shared.principal import current_principal

_MOST_ID = 100


class RatelimitServicer(RatelimitServiceServicer):
    """Serves the methods; the interceptors have checked access and turn errors into status."""

    def __init__(self, ratelimit: Ratelimit, erasure: Erasure) -> None:
        self._ratelimit = ratelimit
        self._erasure = erasure

    async def Acquire(self, request: pb.AcquireRequest, context: Any) -> pb.AcquireResponse:
        """Returns one decision per item, in order."""
        items = [Item(item.key_digest, item.cost) for item in request.items]
        results = await self._ratelimit.acquire(items)
        durations = _Durations()
        return pb.AcquireResponse(results=[_result(result, durations) for result in results])

    async def Lease(self, request: pb.LeaseRequest, context: Any) -> pb.LeaseResponse:
        """Returns one grant per item, in order."""
        items = [LeaseItem(item.key_digest, item.calls) for item in request.items]
        grants = await self._ratelimit.lease(items)
        return pb.LeaseResponse(results=[_granted(grant) for grant in grants])

    async def ReturnLease(
        self, request: pb.ReturnLeaseRequest, context: Any
    ) -> pb.ReturnLeaseResponse:
        """Returns how many calls came back per item, in order."""
        items = [Return(LeaseId(item.lease_id), item.unused) for item in request.items]
        return pb.ReturnLeaseResponse(returned=await self._ratelimit.give_back(items))

    async def GetUsage(self, request: pb.GetUsageRequest, context: Any) -> pb.GetUsageResponse:
        """Returns what the deployment has used this month, and its limits."""
        usage = await self._ratelimit.usage(current_principal(), request.deployment_id)
        return _usage(usage)

    async def ReleaseDeployment(
        self, request: pb.ReleaseDeploymentRequest, context: Any
    ) -> pb.ReleaseDeploymentResponse:
        """Returns when nothing is counted of the deployment any more."""
        deployment = text("deployment_id", request.deployment_id, most=_MOST_ID)
        await self._erasure.release(current_principal().tenant, DeploymentId(deployment))
        return pb.ReleaseDeploymentResponse()

    async def EraseTenant(
        self, request: pb.EraseTenantRequest, context: Any
    ) -> pb.EraseTenantResponse:
        """Returns when nothing is counted of the tenant any more."""
        tombstone = await self._erasure.erase(current_principal().tenant)
        erase_time = timestamp_pb2.Timestamp()
        erase_time.FromDatetime(tombstone.erased_at)
        return pb.EraseTenantResponse(erase_time=erase_time, deployments=tombstone.deployments)


class _Durations(dict[int, duration_pb2.Duration]):
    """Messages by microseconds: those of one batch are mostly the same, and cost to make."""

    def __missing__(self, microseconds: int) -> duration_pb2.Duration:
        made = self[microseconds] = _duration(microseconds)
        return made


def _result(result: tuple[Limits, Reading] | None, durations: _Durations) -> pb.AcquireResult:
    if result is None:
        return pb.AcquireResult(decision=pb.DECISION_KEY_INVALID)
    limits, reading = result
    return pb.AcquireResult(
        decision=_DECISIONS[reading.decision],
        retry_after=None if reading.wait_us is None else durations[reading.wait_us],
        quota_remaining=quota_remaining(limits, reading.used),
        burst_remaining=reading.burst_remaining,
        burst=limits.ceiling.burst,
        rate_per_second=limits.ceiling.rate_per_second,
        burst_reset=durations[reading.burst_reset_us],
        quota=limits.monthly,
        quota_reset=durations[reading.month.ends_us - reading.at_us],
    )


def _granted(grant: Grant | None) -> pb.LeaseResult:
    if grant is None:
        return pb.LeaseResult(decision=pb.DECISION_KEY_INVALID)
    wait_us = grant.reading.wait_us
    return pb.LeaseResult(
        decision=_DECISIONS[grant.reading.decision],
        lease_id=grant.lease_id,
        calls=grant.calls,
        lifetime=_duration(LEASE_US) if grant.calls else None,
        retry_after=None if wait_us is None else _duration(wait_us),
    )


def _usage(usage: Usage) -> pb.GetUsageResponse:
    limits, reading = usage.limits, usage.reading
    reset_time = timestamp_pb2.Timestamp()
    reset_time.FromDatetime(next_month(reading.at))
    return pb.GetUsageResponse(
        deployment_id=usage.deployment_id,
        month=reading.month.name,
        used=reading.used,
        limit=limits.monthly,
        remaining=quota_remaining(limits, reading.used),
        reset_time=reset_time,
        rate_per_second=limits.ceiling.rate_per_second,
        burst=limits.ceiling.burst,
    )


def _duration(microseconds: int) -> duration_pb2.Duration:
    seconds, rest = divmod(microseconds, MICROSECONDS)
    return duration_pb2.Duration(seconds=seconds, nanos=rest * 1_000)


_DECISIONS = {
    Decision.ALLOWED: pb.DECISION_ALLOWED,
    Decision.BURST_EXCEEDED: pb.DECISION_BURST_EXCEEDED,
    Decision.QUOTA_EXCEEDED: pb.DECISION_QUOTA_EXCEEDED,
    Decision.KEY_INVALID: pb.DECISION_KEY_INVALID,
    Decision.UNAVAILABLE: pb.DECISION_UNAVAILABLE,
}
