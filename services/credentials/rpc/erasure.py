"""The end of a tenant over the wire."""

from typing import Any

from bulkhead.credentials.v1 import credentials_service_pb2 as pb2

from services.credentials.erasure_store import Receipt
from services.credentials.rpc.messages import REVOCATIONS
from services.credentials.rpc.part import Part
from services.shared.principal import current_principal


class ErasureRpc(Part):
    """All of a tenant, erased."""

    async def EraseTenant(
        self, request: pb2.EraseTenantRequest, context: Any
    ) -> pb2.EraseTenantResponse:
        return _message(await self._service.erasure.erase(current_principal().tenant))


def _message(receipt: Receipt) -> pb2.EraseTenantResponse:
    answer = pb2.EraseTenantResponse(
        connections=receipt.connections,
        bindings=receipt.bindings,
        revoked=receipt.revoked,
        unrevoked=[
            pb2.Unrevoked(
                connection_id=each.connection_id,
                provider=each.provider,
                name=each.name,
                revocation=REVOCATIONS[each.revocation],
                advice=each.advice,
            )
            for each in receipt.unrevoked
        ],
    )
    answer.erase_time.FromDatetime(receipt.erased_at)
    return answer
