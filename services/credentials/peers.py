"""What credentials asks of auth, with the key of the tenant it acts for."""

from collections.abc import Mapping, Sequence

import grpc
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from opentelemetry import trace

from services.credentials.ports import AuditRecord, Bearer
from services.shared.errors import PermissionDeniedError, UnauthenticatedError
from services.shared.ids import ConnectionId, DeploymentId, TenantId
from services.shared.keyformat import digest
from services.shared.principal import Caller
from services.shared.status import translated

_SERVICE = "bulkhead.credentials.v1.CredentialsService"


class AuthRegistry:
    """auth, as `ports.Registry`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AuthServiceStub(channel)

    async def register(self, bearer: Bearer, connection: ConnectionId) -> None:
        """Makes the connection the bearer's tenant's; see `Registry`."""
        with translated():
            await self._stub.RegisterConnection(
                auth_pb2.RegisterConnectionRequest(connection_id=connection),
                metadata=_presented(bearer),
            )

    async def retire(self, bearer: Bearer, connection: ConnectionId) -> None:
        """Revokes every key of the connection; see `Registry`."""
        with translated():
            await self._stub.RetireConnection(
                auth_pb2.RetireConnectionRequest(connection_id=connection),
                metadata=_presented(bearer),
            )

    async def verify(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Returns when the deployment is the bearer's tenant's; see `Registry`."""
        with translated():
            await self._stub.VerifyDeployment(
                auth_pb2.VerifyDeploymentRequest(deployment_id=deployment),
                metadata=_presented(bearer),
            )

    async def owner(self, deployment: DeploymentId) -> TenantId | None:
        """Returns whose the deployment is; see `suspensions.Owners`."""
        with translated():
            answer = await self._stub.ResolveDeployments(
                auth_pb2.ResolveDeploymentsRequest(deployment_ids=[deployment])
            )
        return TenantId(answer.tenant_ids[0]) if answer.tenant_ids[0] else None

    async def tenant_name(self, bearer: Bearer) -> str | None:
        """Returns the name of the bearer's tenant; see `Registry`."""
        try:
            with translated():
                answer = await self._stub.GetTenant(
                    auth_pb2.GetTenantRequest(), metadata=_presented(bearer)
                )
        except PermissionDeniedError:
            return None
        return answer.tenant.name


class AuthAuditTrail:
    """auth's audit log, as `ports.AuditTrail`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AuthServiceStub(channel)

    async def record(self, records: Sequence[AuditRecord]) -> Sequence[bool]:
        """Returns whether each is written; see `AuditTrail`."""
        events = [
            auth_pb2.NewAuditEvent(
                key_digest=record.key_digest,
                method=f"{_SERVICE}/{record.act}",
                peer=record.peer,
                resources=dict(record.resources),
                reason=record.purpose,
                trace_id=record.trace_id,
            )
            for record in records
        ]
        with translated():
            answer = await self._stub.RecordAuditEvents(
                auth_pb2.RecordAuditEventsRequest(events=events)
            )
        return [bool(event_id) for event_id in answer.event_ids]


class AuthAuditor:
    """auth's audit log, as `Auditor`: for keys too that open nothing when we present them.

    A job's key is bound to the service that calls us with it (P-30), which is the event's peer.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AuthServiceStub(channel)

    async def record(self, caller: Caller, method: str, resources: Mapping[str, str]) -> None:
        """Returns once the event is written; see `Auditor`."""
        event = auth_pb2.NewAuditEvent(
            key_digest=digest(caller.bearer or ""),
            method=method,
            peer=caller.peer,
            resources=dict(resources),
            trace_id=_current_trace_id(),
        )
        with translated():
            answer = await self._stub.RecordAuditEvents(
                auth_pb2.RecordAuditEventsRequest(events=[event])
            )
        if not all(answer.event_ids):
            raise UnauthenticatedError


def _current_trace_id() -> str:
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


def _presented(bearer: Bearer) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {bearer.key}"),)
