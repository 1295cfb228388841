"""Secrets of deployments, the environment that they are for, and the first administrator."""

from collections.abc import Sequence
from typing import Any

from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb2

from services.provisioner.domain import DatabaseRole
from services.provisioner.rpc.messages import named, own_or_named, timestamp
from services.provisioner.rpc.part import Part
from services.provisioner.secret_rules import (
    Secret,
    WantedSecret,
    checked_name,
    checked_value,
    generated,
)
from services.shared.errors import InvalidFieldError
from services.shared.principal import Principal, current_principal

_SCOPES = {DatabaseRole.WRITER: "db:write", DatabaseRole.READER: "db:read"}


class SecretsRpc(Part):
    """What is kept for a deployment's own program."""

    async def PutSecret(self, request: pb2.PutSecretRequest, context: Any) -> pb2.PutSecretResponse:
        kept = await self.service.secrets.put(
            current_principal().tenant, named(request.deployment_id), _wanted(request)
        )
        return pb2.PutSecretResponse(secret=_message(kept))

    async def ListSecrets(
        self, request: pb2.ListSecretsRequest, context: Any
    ) -> pb2.ListSecretsResponse:
        found = await self.service.secrets.list(
            current_principal().tenant, named(request.deployment_id)
        )
        return pb2.ListSecretsResponse(secrets=[_message(secret) for secret in found])

    async def DeleteSecret(
        self, request: pb2.DeleteSecretRequest, context: Any
    ) -> pb2.DeleteSecretResponse:
        tenant, deployment = current_principal().tenant, named(request.deployment_id)
        await self.service.secrets.delete(tenant, deployment, checked_name(request.name))
        return pb2.DeleteSecretResponse()

    async def GetEnvironment(
        self, request: pb2.GetEnvironmentRequest, context: Any
    ) -> pb2.GetEnvironmentResponse:
        principal = current_principal()
        variables = await self.service.environments.get(
            principal.tenant, own_or_named(principal, ""), _roles(principal)
        )
        return pb2.GetEnvironmentResponse(
            variables=[
                pb2.EnvironmentVariable(name=name, value=value)
                for name, value in sorted(variables.items())
            ]
        )

    async def RevealBootstrapAdmin(
        self, request: pb2.RevealBootstrapAdminRequest, context: Any
    ) -> pb2.RevealBootstrapAdminResponse:
        shown = await self.service.administrators.reveal(
            current_principal().tenant, named(request.deployment_id)
        )
        return pb2.RevealBootstrapAdminResponse(user=shown.user, password=shown.password)


def _wanted(request: pb2.PutSecretRequest) -> WantedSecret:
    name = checked_name(request.name)
    match request.WhichOneof("content"):
        case "value":
            return WantedSecret(name, generated=False, value=checked_value(request.value))
        case "generate_length":
            return WantedSecret(name, generated=True, value=generated(request.generate_length))
        case _:
            raise InvalidFieldError("value", "give it, or generate_length")


def _roles(principal: Principal) -> Sequence[DatabaseRole]:
    return [role for role, scope in _SCOPES.items() if principal.permits(scope)]


def _message(secret: Secret) -> pb2.Secret:
    return pb2.Secret(
        name=secret.name,
        generated=secret.generated,
        update_time=timestamp(secret.update_time),
    )
