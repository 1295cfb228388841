"""What the provisioner asks of other services, with the key of the tenant it acts for."""

from datetime import UTC, datetime

import grpc
from bulkhead.app_proxy.v1 import routing_service_pb2 as routing_pb2
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceStub
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials_pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit_pb2
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub

from services.provisioner.domain import Deployment, RouteState
from services.provisioner.ports import Bearer
from services.shared.ids import DeploymentId
from services.shared.status import translated

_ROUTE_STATES: dict[RouteState, "routing_pb2.RouteState.ValueType"] = {
    RouteState.STARTING: routing_pb2.ROUTE_STATE_STARTING,
    RouteState.RUNNING: routing_pb2.ROUTE_STATE_RUNNING,
    RouteState.FAILED: routing_pb2.ROUTE_STATE_FAILED,
    RouteState.SUSPENDED: routing_pb2.ROUTE_STATE_SUSPENDED,
}


class AuthRegistry:
    """auth, as `ports.Registry`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = AuthServiceStub(channel)

    async def delegate(self, bearer: Bearer, purpose: str) -> Bearer:
        """Returns a key with which a job of the provisioner acts for the bearer's tenant.

        It is to be renewed when half of its time is over.

        Raises:
            BulkheadError: auth refuses, or is away.
        """
        with translated():
            answer = await self._stub.Delegate(
                auth_pb2.DelegateRequest(purpose=purpose), metadata=_presented(bearer)
            )
        now = datetime.now(UTC)
        expires = answer.expire_time.ToDatetime(UTC)
        return Bearer(answer.key, renew_time=now + (expires - now) / 2)

    async def register(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Makes the deployment the bearer's tenant's, so that keys can be issued for it.

        Raises:
            BulkheadError: auth refuses, or is away.
        """
        with translated():
            await self._stub.RegisterDeployment(
                auth_pb2.RegisterDeploymentRequest(deployment_id=deployment),
                metadata=_presented(bearer),
            )

    async def retire(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Revokes every key of the deployment and lets none be issued again.

        Raises:
            BulkheadError: auth refuses, or is away.
        """
        with translated():
            await self._stub.RetireDeployment(
                auth_pb2.RetireDeploymentRequest(deployment_id=deployment),
                metadata=_presented(bearer),
            )


class ProxyRoutes:
    """app_proxy, as `ports.Routes`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RoutingServiceStub(channel)

    async def put(self, bearer: Bearer, deployment: Deployment, state: RouteState) -> None:
        """Writes the deployment's route.

        Raises:
            AlreadyExistsError: the host is another deployment's.
            BulkheadError: app_proxy refuses, or is away.
        """
        route = routing_pb2.Route(
            host=deployment.host,
            deployment_id=deployment.deployment_id,
            state=_ROUTE_STATES[state],
            name=deployment.name,
            mcp=deployment.mcp,
            database_generation=deployment.generation,
        )
        with translated():
            await self._stub.PutRoute(
                routing_pb2.PutRouteRequest(route=route), metadata=_presented(bearer)
            )

    async def delete(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Makes the deployment's host unknown.

        Raises:
            BulkheadError: app_proxy refuses, or is away.
        """
        with translated():
            await self._stub.DeleteRoute(
                routing_pb2.DeleteRouteRequest(deployment_id=deployment),
                metadata=_presented(bearer),
            )


class CredentialsLoans:
    """credentials, as `ports.Loans`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = CredentialsServiceStub(channel)

    async def suspend(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Lets nothing be vended to the deployment; its bindings stay.

        Raises:
            BulkheadError: credentials refuses, or is away.
        """
        with translated():
            await self._stub.SuspendDeployment(
                credentials_pb2.SuspendDeploymentRequest(deployment_id=deployment),
                metadata=_presented(bearer),
            )

    async def resume(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Lets be vended to the deployment again.

        Raises:
            BulkheadError: credentials refuses, or is away.
        """
        with translated():
            await self._stub.ResumeDeployment(
                credentials_pb2.ResumeDeploymentRequest(deployment_id=deployment),
                metadata=_presented(bearer),
            )

    async def end(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Ends every binding of the deployment.

        Raises:
            BulkheadError: credentials refuses, or is away.
        """
        with translated():
            await self._stub.ReleaseDeployment(
                credentials_pb2.ReleaseDeploymentRequest(deployment_id=deployment),
                metadata=_presented(bearer),
            )


class RatelimitCounters:
    """ratelimit, as `ports.Counters`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = RatelimitServiceStub(channel)

    async def release(self, bearer: Bearer, deployment: DeploymentId) -> None:
        """Erases every counter of the deployment.

        Raises:
            BulkheadError: ratelimit refuses, or is away.
        """
        with translated():
            await self._stub.ReleaseDeployment(
                ratelimit_pb2.ReleaseDeploymentRequest(deployment_id=deployment),
                metadata=_presented(bearer),
            )


def _presented(bearer: Bearer) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {bearer.key}"),)
