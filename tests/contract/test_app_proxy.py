"""RoutingService over the wire."""

import pytest
from bulkhead.app_proxy.v1 import routing_service_pb2 as pb2
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceStub

from services.shared.ids import new_deployment_id
from tests.mesh import Mesh, bearer
from tests.refusals import expect_refused


@pytest.fixture(scope="session")
def routing(mesh: Mesh) -> RoutingServiceStub:
    return mesh.stub(RoutingServiceStub, "app_proxy", "provisioner")


def route(host: str, **fields: object) -> pb2.Route:
    values = {
        "host": host,
        "deployment_id": new_deployment_id(),
        "state": pb2.ROUTE_STATE_RUNNING,
        "name": "notes",
    }
    return pb2.Route(**(values | fields))  # type: ignore[arg-type]


async def test_a_route_is_put_replaced_read_and_deleted(
    mesh: Mesh, routing: RoutingServiceStub
) -> None:
    customer = await mesh.customer()
    metadata = bearer(customer.key)
    first = route("put-1.localhost", state=pb2.ROUTE_STATE_STARTING)
    await routing.PutRoute(pb2.PutRouteRequest(route=first), metadata=metadata)
    got = await routing.GetRoute(pb2.GetRouteRequest(host=first.host), metadata=metadata)
    assert got.route == first
    first.state = pb2.ROUTE_STATE_RUNNING
    await routing.PutRoute(pb2.PutRouteRequest(route=first), metadata=metadata)
    got = await routing.GetRoute(pb2.GetRouteRequest(host=first.host), metadata=metadata)
    assert got.route.state == pb2.ROUTE_STATE_RUNNING
    for _ in range(2):
        await routing.DeleteRoute(
            pb2.DeleteRouteRequest(deployment_id=first.deployment_id), metadata=metadata
        )
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await routing.GetRoute(pb2.GetRouteRequest(host=first.host), metadata=metadata)


@pytest.mark.promise("P-41")
async def test_another_tenants_host_is_taken_and_its_route_unknown(
    mesh: Mesh, routing: RoutingServiceStub
) -> None:
    owner, other = await mesh.customer(), await mesh.customer()
    theirs = route("taken-1.localhost")
    await routing.PutRoute(pb2.PutRouteRequest(route=theirs), metadata=bearer(owner.key))
    with expect_refused("ALREADY_EXISTS", "HOST_TAKEN"):
        await routing.PutRoute(
            pb2.PutRouteRequest(route=route(theirs.host)), metadata=bearer(other.key)
        )
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await routing.GetRoute(pb2.GetRouteRequest(host=theirs.host), metadata=bearer(other.key))
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        moved = route("moved-1.localhost", deployment_id=theirs.deployment_id)
        await routing.PutRoute(pb2.PutRouteRequest(route=moved), metadata=bearer(other.key))
    await routing.DeleteRoute(
        pb2.DeleteRouteRequest(deployment_id=theirs.deployment_id), metadata=bearer(other.key)
    )
    got = await routing.GetRoute(pb2.GetRouteRequest(host=theirs.host), metadata=bearer(owner.key))
    assert got.route == theirs


@pytest.mark.parametrize(
    "host",
    ["", "localhost", "a.b.localhost", "UPPER.localhost", "x.example.com", "-x.localhost", "a b"],
)
async def test_a_bad_host_is_refused_by_name(
    mesh: Mesh, routing: RoutingServiceStub, host: str
) -> None:
    customer = await mesh.customer()
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="route.host"):
        await routing.PutRoute(
            pb2.PutRouteRequest(route=route(host)), metadata=bearer(customer.key)
        )
