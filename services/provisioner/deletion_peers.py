"""What deletions ask of other services, with the key of the tenant that they act for."""

from datetime import UTC, datetime
from typing import Any

import grpc
from bulkhead.app_proxy.v1 import routing_service_pb2 as routing_pb2
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceStub
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit_pb2
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from services.provisioner.certificate_documents import moment
from services.provisioner.deletion_ports import Receipt
from services.provisioner.ports import Bearer
from services.shared.errors import NotFoundError
from services.shared.ids import DeploymentId
from services.shared.status import translated

_SCOPES = ("deployments:write", "tenants:write")
# What erases much takes its time; who is asked goes on when we do not wait, and can be asked again.
_ERASE_SECONDS = 30.0


class AuthKeys:
    """auth, as `deletion_ports.TenantKeys`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AuthServiceStub(channel)

    async def delegate(self, bearer: Bearer, purpose: str) -> Bearer:
        """Returns a key that opens CloseTenant and EraseTenant as well; see the port."""
        with translated():
            answer = await self._stub.Delegate(
                auth_pb2.DelegateRequest(purpose=purpose, scopes=_SCOPES),
                metadata=_presented(bearer),
            )
        now = datetime.now(UTC)
        expires = answer.expire_time.ToDatetime(UTC)
        return Bearer(answer.key, renew_time=now + (expires - now) / 2)

    async def close(self, bearer: Bearer) -> Receipt:
        """Ends every key of the tenant; see the port.

        The job's key in the answer is not taken: the presented one works on, and is given a
        successor when its time comes.
        """
        with translated():
            answer = await self._stub.CloseTenant(
                auth_pb2.CloseTenantRequest(), metadata=_presented(bearer), timeout=_ERASE_SECONDS
            )
        return {
            "revoked_keys": answer.revoked_keys,
            "effective_at": _moment(answer.effect.effective_at),
        }

    async def erase(self, bearer: Bearer) -> Receipt:
        """Erases the closed tenant; see the port."""
        with translated():
            answer = await self._stub.EraseTenant(
                auth_pb2.EraseTenantRequest(), metadata=_presented(bearer), timeout=_ERASE_SECONDS
            )
        return {
            "erased_at": _moment(answer.erase_time),
            "keys": answer.keys,
            "deployments": answer.deployments,
            "connections": answer.connections,
            "audit_events": answer.audit_events,
        }

    async def knows(self, bearer: Bearer, deployment: DeploymentId) -> bool:
        """Returns whether auth takes the deployment to be alive; see the port."""
        request = auth_pb2.VerifyDeploymentRequest(deployment_id=deployment)
        try:
            with translated():
                await self._stub.VerifyDeployment(request, metadata=_presented(bearer))
        except NotFoundError:
            return False
        return True


class ProxyHosts:
    """app_proxy, as `deletion_ports.TenantRoutes`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RoutingServiceStub(channel)

    async def erase(self, bearer: Bearer) -> Receipt:
        """Makes every host of the tenant unknown; see the port."""
        with translated():
            answer = await self._stub.EraseTenant(
                routing_pb2.EraseTenantRequest(),
                metadata=_presented(bearer),
                timeout=_ERASE_SECONDS,
            )
        return {"erased_at": _moment(answer.erase_time), "routes": answer.routes}

    async def knows(self, bearer: Bearer, host: str) -> bool:
        """Returns whether the host has a route; see the port."""
        request = routing_pb2.GetRouteRequest(host=host)
        try:
            with translated():
                await self._stub.GetRoute(request, metadata=_presented(bearer))
        except NotFoundError:
            return False
        return True


class CredentialsOfTenant:
    """credentials, as `deletion_ports.TenantLoans`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = CredentialsServiceStub(channel)

    async def release(self, bearer: Bearer, deployment: DeploymentId) -> int:
        """Ends every binding of the deployment; see the port."""
        request = credentials_pb2.ReleaseDeploymentRequest(deployment_id=deployment)
        with translated():
            answer = await self._stub.ReleaseDeployment(request, metadata=_presented(bearer))
        return int(answer.bindings_ended)

    async def erase(self, bearer: Bearer) -> Receipt:
        """Revokes the tenant's grants and erases it; see the port."""
        with translated():
            answer = await self._stub.EraseTenant(
                credentials_pb2.EraseTenantRequest(),
                metadata=_presented(bearer),
                timeout=_ERASE_SECONDS,
            )
        return {
            "erased_at": _moment(answer.erase_time),
            "connections": answer.connections,
            "bindings": answer.bindings,
            "revoked": answer.revoked,
            "unrevoked": [_unrevoked(each) for each in answer.unrevoked],
        }


class RatelimitOfTenant:
    """ratelimit, as `deletion_ports.TenantCounters`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RatelimitServiceStub(channel)

    async def release(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Erases every counter of the deployment; see the port."""
        request = ratelimit_pb2.ReleaseDeploymentRequest(deployment_id=deployment)
        with translated():
            await self._stub.ReleaseDeployment(request, metadata=_presented(bearer))

    async def erase(self, bearer: Bearer) -> Receipt:
        """Erases every counter of the tenant's deployments; see the port."""
        with translated():
            answer = await self._stub.EraseTenant(
                ratelimit_pb2.EraseTenantRequest(),
                metadata=_presented(bearer),
                timeout=_ERASE_SECONDS,
            )
        return {"erased_at": _moment(answer.erase_time), "deployments": answer.deployments}


def _unrevoked(grant: credentials_pb2.Unrevoked) -> dict[str, Any]:
    return {
        "connection_id": grant.connection_id,
        "provider": grant.provider,
        "revocation": credentials_pb2.Revocation.Name(grant.revocation)
        .removeprefix("REVOCATION_")
        .lower(),
        "advice": grant.advice,
    }


def _moment(time: Timestamp) -> str:
    return moment(time.ToDatetime(UTC))


def _presented(bearer: Bearer) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {bearer.key}"),)
