"""Revocations over the wire."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2
from google.protobuf.duration_pb2 import Duration

from services.auth.domain import Acknowledgement, Lease
from services.auth.rpc.messages import MOST_NAME
from services.auth.rpc.part import Part
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.ids import KeyId
from services.shared.principal import current_caller

_LEAST_WATCHER_ID, _MOST_WATCHER_ID = 16, 64
_MOST_USED = 1_000


class WatchersRpc(Part):
    """What watchers hear of revocations, and what they say."""

    async def WatchRevocations(
        self, request: pb2.WatchRevocationsRequest, context: Any
    ) -> AsyncIterator[pb2.WatchRevocationsResponse]:
        async for revocation in self._service.feed.watch():
            yield pb2.WatchRevocationsResponse(
                sequence=revocation.sequence, key_ids=revocation.key_ids
            )

    async def AcknowledgeRevocations(
        self, request: pb2.AcknowledgeRevocationsRequest, context: Any
    ) -> pb2.AcknowledgeRevocationsResponse:
        given = Acknowledgement(
            current_caller().peer, _watcher_id(request.watcher_id), _sequence(request.sequence)
        )
        self._service.uses.note(_used(request.used_key_ids))
        return _lease(await self._service.watchers.acknowledge(given))


def _watcher_id(value: str) -> str:
    return text("watcher_id", value, least=_LEAST_WATCHER_ID, most=_MOST_WATCHER_ID)


def _sequence(value: int) -> int:
    if value < 0:
        raise InvalidFieldError("sequence", "must not be negative")
    return value


def _used(values: Sequence[str]) -> list[KeyId]:
    if len(values) > _MOST_USED:
        raise InvalidFieldError("used_key_ids", f"must be at most {_MOST_USED}")
    return [KeyId(text("used_key_ids", value, most=MOST_NAME)) for value in values]


def _lease(lease: Lease) -> pb2.AcknowledgeRevocationsResponse:
    length = Duration()
    length.FromTimedelta(lease.length)
    return pb2.AcknowledgeRevocationsResponse(
        revocations=[
            pb2.Revocation(sequence=each.sequence, key_ids=each.key_ids)
            for each in lease.revocations
        ],
        forget_all=lease.forget_all,
        sequence=lease.sequence,
        lease=length,
    )
