"""`envoy.service.ratelimit.v3.RateLimitService` in the words of the domain."""

from collections.abc import Iterator
from typing import Any

from bulkhead.common.v1 import access_pb2
from bulkhead.envoy.ratelimit.v3 import rate_limit_pb2 as pb
from bulkhead.envoy.ratelimit.v3.rate_limit_pb2_grpc import (
    RateLimitServiceServicer,
    add_RateLimitServiceServicer_to_server,
)
from google.protobuf import duration_pb2, wrappers_pb2

from services.ratelimit.descriptors import Descriptor, Entry, Limit
from services.ratelimit.rls import DescriptorLimits, Status
from services.ratelimit.windows import MICROSECONDS, Unit
from services.shared.errors import InvalidFieldError
from services.shared.server import Registration

SERVICE = "envoy.service.ratelimit.v3.RateLimitService"
# An Envoy that fronts the mesh, and nobody else.
ACCESS = access_pb2.Access(keyless=True, peers=["edge"], audit=access_pb2.AUDIT_NONE)
# More would be no other answer, and every number stays exact.
_MOST_HITS = 2**32
_MOST_MULTIPLIER = 1_000
_UNITS = {
    pb.SECOND: Unit.SECOND,
    pb.MINUTE: Unit.MINUTE,
    pb.HOUR: Unit.HOUR,
    pb.DAY: Unit.DAY,
    pb.MONTH: Unit.MONTH,
    pb.YEAR: Unit.YEAR,
}
_UNBOUNDED = 2**32 - 1


class RateLimitServicer(RateLimitServiceServicer):
    """Answers Envoy, which asks before it forwards anything."""

    def __init__(self, limits: DescriptorLimits) -> None:
        self._limits = limits

    async def ShouldRateLimit(  # noqa: N802 the contract's name
        self,
        request: pb.RateLimitRequest,
        context: Any,  # noqa: ARG002 what grpc passes
    ) -> pb.RateLimitResponse:
        """Returns a status per descriptor, and whether one of them is over its limit."""
        statuses = await self._limits.decide(request.domain, list(_descriptors(request)))
        over = any(status.over_limit for status in statuses)
        return pb.RateLimitResponse(
            overall_code=_code(over=over), statuses=[_status(status) for status in statuses]
        )


def registration(limits: DescriptorLimits) -> Registration:
    """Returns how a server offers the API."""
    return Registration(
        descriptor=pb.DESCRIPTOR.services_by_name["RateLimitService"],
        servicer=RateLimitServicer(limits),
        add_to_server=add_RateLimitServiceServicer_to_server,
    )


def _descriptors(request: pb.RateLimitRequest) -> Iterator[Descriptor]:
    for index, descriptor in enumerate(request.descriptors):
        yield Descriptor(
            tuple(Entry(entry.key, entry.value) for entry in descriptor.entries),
            _hits(descriptor, max(1, request.hits_addend)),
            _override(index, descriptor),
        )


def _hits(descriptor: pb.RateLimitDescriptor, otherwise: int) -> int:
    """Returns the descriptor's own number, also 0, and that of the request where it has none."""
    own = descriptor.HasField("hits_addend")
    hits = min(_MOST_HITS, descriptor.hits_addend.value if own else otherwise)
    return -hits if descriptor.is_negative_hits else hits


def _override(index: int, descriptor: pb.RateLimitDescriptor) -> Limit | None:
    if not descriptor.HasField("limit"):
        return None
    limit = descriptor.limit
    if limit.unit not in _UNITS:
        raise InvalidFieldError(f"descriptors[{index}].limit.unit", "must be a unit of time")
    multiplier = limit.unit_multiplier.value if limit.HasField("unit_multiplier") else 1
    if not 1 <= multiplier <= _MOST_MULTIPLIER:
        raise InvalidFieldError(
            f"descriptors[{index}].limit.unit_multiplier", f"must be 1 to {_MOST_MULTIPLIER}"
        )
    return Limit(limit.requests_per_unit, _UNITS[limit.unit], multiplier)


def _status(status: Status) -> pb.RateLimitResponse.DescriptorStatus:
    code = _code(over=status.over_limit)
    if status.applied is None:
        return pb.RateLimitResponse.DescriptorStatus(code=code)
    if status.outcome is None:
        return pb.RateLimitResponse.DescriptorStatus(code=code, limit_remaining=_UNBOUNDED)
    # Rounded up: who waits that long finds the next window.
    seconds = -(-status.outcome.resets_us // MICROSECONDS)
    return pb.RateLimitResponse.DescriptorStatus(
        code=code,
        current_limit=_limit(status.applied.limit),
        limit_remaining=status.outcome.left,
        duration_until_reset=duration_pb2.Duration(seconds=seconds),
    )


def _limit(limit: Limit) -> pb.RateLimitResponse.RateLimit:
    several = wrappers_pb2.UInt32Value(value=limit.multiplier) if limit.multiplier > 1 else None
    return pb.RateLimitResponse.RateLimit(
        requests_per_unit=limit.requests or 0,
        unit=pb.RateLimitResponse.RateLimit.Unit.Value(limit.unit.name),
        name=limit.name,
        unit_multiplier=several,
    )


def _code(*, over: bool) -> "pb.RateLimitResponse.Code.ValueType":
    return pb.RateLimitResponse.OVER_LIMIT if over else pb.RateLimitResponse.OK
