"""The ways into deployments' databases."""

from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.domain import DatabaseRole
from services.provisioner.rpc.messages import ROLES, own_or_named
from services.provisioner.rpc.part import Part
from services.shared.errors import InvalidFieldError, PermissionDeniedError, Reason
from services.shared.principal import current_caller, current_principal

_WRITE_SCOPE = "db:write"
# Who reaches the servers themselves; everybody else is listened to.
_IN_MESH = "app_proxy"


class DatabasesRpc(Part):
    """Connection strings."""

    async def GetDatabaseConnection(
        self, request: pb2.GetDatabaseConnectionRequest, context: Any
    ) -> pb2.GetDatabaseConnectionResponse:
        principal = current_principal()
        role = ROLES.get(request.role)
        if role is None:
            raise InvalidFieldError("role", "is unknown")
        if role is DatabaseRole.WRITER and not principal.permits(_WRITE_SCOPE):
            raise PermissionDeniedError(
                f"the key lacks the scope {_WRITE_SCOPE}",
                Reason.SCOPE_MISSING,
                metadata={"scope": _WRITE_SCOPE},
            )
        asked = own_or_named(principal, request.deployment_id)
        found = await self.service.databases.connection(
            principal.tenant, asked, role, in_mesh=current_caller().peer == _IN_MESH
        )
        return pb2.GetDatabaseConnectionResponse(
            host=found.address.host,
            port=found.address.port,
            database=found.database,
            user=found.user,
            password=found.password,
            uri=found.uri,
            server_authority=found.address.authority,
        )

    async def WakeDatabase(
        self, request: pb2.WakeDatabaseRequest, context: Any
    ) -> pb2.WakeDatabaseResponse:
        principal = current_principal()
        asked = own_or_named(principal, request.deployment_id)
        await self.service.databases.wake(principal.tenant, asked)
        return pb2.WakeDatabaseResponse()
