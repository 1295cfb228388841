"""`bulkhead.app_proxy.v1` in the words of the domain."""

from typing import Any

from bulkhead.app_proxy.v1 import routing_service_pb2 as pb
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceServicer

from services.app_proxy.routes import Route, RouteState
from services.app_proxy.service import Routing
from services.shared.errors import InvalidFieldError
from services.shared.fields import text
from services.shared.ids import DeploymentId, TenantId
from services.shared.principal import current_principal

_MOST_ID_CHARACTERS = 64
_MOST_NAME_CHARACTERS = 63
_MOST_HOST_CHARACTERS = 253


class RoutingServicer(RoutingServiceServicer):
    """Serves the routes; the interceptors have checked access and turn errors into status."""

    def __init__(self, routing: Routing) -> None:
        self._routing = routing

    async def PutRoute(self, request: pb.PutRouteRequest, context: Any) -> pb.PutRouteResponse:
        """Creates or replaces the deployment's route."""
        await self._routing.put(_route(request.route, current_principal().tenant))
        return pb.PutRouteResponse()

    async def GetRoute(self, request: pb.GetRouteRequest, context: Any) -> pb.GetRouteResponse:
        """Returns the tenant's route of exactly this host."""
        host = text("host", request.host, most=_MOST_HOST_CHARACTERS)
        route = await self._routing.get(current_principal().tenant, host)
        return pb.GetRouteResponse(route=_message(route))

    async def DeleteRoute(
        self,
        request: pb.DeleteRouteRequest,
        context: Any,
    ) -> pb.DeleteRouteResponse:
        """Deletes the deployment's route."""
        deployment = text("deployment_id", request.deployment_id, most=_MOST_ID_CHARACTERS)
        await self._routing.delete(current_principal().tenant, DeploymentId(deployment))
        return pb.DeleteRouteResponse()

    async def EraseTenant(
        self,
        request: pb.EraseTenantRequest,
        context: Any,
    ) -> pb.EraseTenantResponse:
        """Deletes every route of the tenant, for good."""
        erased = await self._routing.erase(current_principal().tenant)
        answer = pb.EraseTenantResponse(routes=erased.routes)
        answer.erase_time.FromDatetime(erased.erased_at)
        return answer


def _route(message: pb.Route, tenant: TenantId) -> Route:
    deployment = text("route.deployment_id", message.deployment_id, most=_MOST_ID_CHARACTERS)
    return Route(
        host=text("route.host", message.host, most=_MOST_HOST_CHARACTERS),
        deployment_id=DeploymentId(deployment),
        tenant_id=tenant,
        state=_state(message.state),
        name=text("route.name", message.name, most=_MOST_NAME_CHARACTERS),
        mcp=message.mcp,
        database_generation=_generation(message.database_generation),
    )


def _generation(value: int) -> int:
    if value < 0:
        raise InvalidFieldError("route.database_generation", "must not be negative")
    return value


def _state(value: "pb.RouteState.ValueType") -> RouteState:
    known = {pb.RouteState.Value(f"ROUTE_STATE_{state.name}"): state for state in RouteState}
    if value not in known:
        raise InvalidFieldError("route.state", "must be STARTING, RUNNING, FAILED or SUSPENDED")
    return known[value]


def _message(route: Route) -> pb.Route:
    return pb.Route(
        host=route.host,
        deployment_id=route.deployment_id,
        state=pb.RouteState.Value(f"ROUTE_STATE_{route.state.name}"),
        name=route.name,
        mcp=route.mcp,
        database_generation=route.database_generation,
    )
