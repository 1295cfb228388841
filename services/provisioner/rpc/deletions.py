"""The end of tenants, and the certificates of deletions."""

from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.deletion_store import Left
from services.provisioner.domain import Operation, OperationKind
from services.provisioner.rpc.messages import (
    OPERATION_STATES,
    RESOURCE_KINDS,
    bearer,
    operation_message,
)
from services.provisioner.rpc.part import Part
from services.provisioner.tombstone_store import Tombstone
from services.shared.errors import InvalidFieldError
from services.shared.ids import DeploymentId
from services.shared.principal import current_principal

# A token that somebody chose has to be as hard to guess as one that is made here.
_LEAST_TOKEN_LENGTH, _MOST_TOKEN_LENGTH = 32, 256


class DeletionsRpc(Part):
    """Tenants deleted, and what proves it."""

    async def DeleteTenant(
        self, request: pb2.DeleteTenantRequest, context: Any
    ) -> pb2.DeleteTenantResponse:
        token = request.certificate_token and _token(request.certificate_token)
        tombstone, opening = await self.service.tenant_deletion.delete(
            current_principal().tenant, bearer(), token or None
        )
        return pb2.DeleteTenantResponse(
            operation=operation_message(_operation(tombstone)), certificate_token=opening
        )

    async def GetDeletionCertificate(
        self, request: pb2.GetDeletionCertificateRequest, context: Any
    ) -> pb2.GetDeletionCertificateResponse:
        status = await self.service.certification.status(_token(request.certificate_token))
        return pb2.GetDeletionCertificateResponse(
            state=OPERATION_STATES[status.state],
            certificate=status.certificate or "",
            remainders=[_remainder(each) for each in status.left],
        )

    async def ListCertificateKeys(
        self, request: pb2.ListCertificateKeysRequest, context: Any
    ) -> pb2.ListCertificateKeysResponse:
        return pb2.ListCertificateKeysResponse(keys=self.service.certification.key_set())


def _token(value: str) -> str:
    """Returns what a field holds of a token, as it is: white space belongs to it."""
    if not _LEAST_TOKEN_LENGTH <= len(value) <= _MOST_TOKEN_LENGTH:
        raise InvalidFieldError(
            "certificate_token",
            f"must have {_LEAST_TOKEN_LENGTH} to {_MOST_TOKEN_LENGTH} characters",
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise InvalidFieldError("certificate_token", "must be ASCII without spaces")
    return value


def _operation(tombstone: Tombstone) -> Operation:
    return Operation(
        operation_id=tombstone.operation_id,
        tenant_id=tombstone.tenant_id,
        # It is of them all.
        deployment_id=DeploymentId(""),
        kind=OperationKind.DELETE_TENANT,
        state=tombstone.state,
        step=tombstone.step,
        retries=tombstone.retries,
        message=tombstone.message,
        create_time=tombstone.request_time,
        end_time=tombstone.end_time,
    )


def _remainder(left: Left) -> pb2.Remainder:
    kind = pb2.RESOURCE_KIND_UNSPECIFIED if left.kind is None else RESOURCE_KINDS[left.kind]
    return pb2.Remainder(
        deployment_id=left.deployment_id or "",
        kind=kind,
        step=left.step,
        retries=left.retries,
        message=left.message,
    )
