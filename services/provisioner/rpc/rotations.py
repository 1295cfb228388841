"""New passwords for databases."""

from datetime import timedelta
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.domain import MOST_REQUEST_ID_LENGTH
from services.provisioner.rpc.messages import bearer, length_of_time, named, operation_message
from services.provisioner.rpc.part import Part
from services.shared.fields import text
from services.shared.principal import current_principal

_USUAL_OVERLAP = timedelta(minutes=10)
_MOST_OVERLAP = timedelta(hours=24)


class RotationsRpc(Part):
    """Rotations."""

    async def RotateDatabaseCredentials(
        self, request: pb2.RotateDatabaseCredentialsRequest, context: Any
    ) -> pb2.RotateDatabaseCredentialsResponse:
        request_id = text("request_id", request.request_id, most=MOST_REQUEST_ID_LENGTH)
        overlap = _USUAL_OVERLAP
        if request.HasField("overlap"):
            overlap = length_of_time("overlap", request.overlap, most=_MOST_OVERLAP)
        operation = await self.service.rotation.rotate(
            current_principal().tenant,
            bearer(),
            named(request.deployment_id),
            request_id,
            overlap,
        )
        return pb2.RotateDatabaseCredentialsResponse(operation=operation_message(operation))
