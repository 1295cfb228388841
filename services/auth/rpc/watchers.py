"""Revocations over the wire."""

from collections.abc import AsyncIterator
from typing import Any

from bulkhead.auth.v1 import auth_service_pb2 as pb2

from services.auth.rpc.part import Part


class WatchersRpc(Part):
    """What watchers hear of revocations."""

    async def WatchRevocations(
        self, request: pb2.WatchRevocationsRequest, context: Any
    ) -> AsyncIterator[pb2.WatchRevocationsResponse]:
        async for revocation in self._service.feed.watch():
            yield pb2.WatchRevocationsResponse(
                sequence=revocation.sequence, key_ids=revocation.key_ids
            )
