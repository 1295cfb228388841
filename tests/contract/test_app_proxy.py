"""RoutingService over the wire."""

import pytest
from bulkhead.app_proxy.v1 import routing_service_pb2 as pb2
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceStub
from bulkhead.envoy.auth.v3 import authorization_pb2 as auth_pb
from bulkhead.envoy.auth.v3.authorization_pb2_grpc import AuthorizationStub

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
    first.state, first.database_generation = pb2.ROUTE_STATE_RUNNING, 3
    await routing.PutRoute(pb2.PutRouteRequest(route=first), metadata=metadata)
    got = await routing.GetRoute(pb2.GetRouteRequest(host=first.host), metadata=metadata)
    assert got.route == first
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


async def test_a_generation_is_no_negative_number(mesh: Mesh, routing: RoutingServiceStub) -> None:
    customer = await mesh.customer()
    wrong = route("negative-1.localhost", database_generation=-1)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="route.database_generation"):
        await routing.PutRoute(pb2.PutRouteRequest(route=wrong), metadata=bearer(customer.key))


@pytest.mark.promise("P-39")
async def test_an_erased_tenants_hosts_are_unknown_and_none_is_put_again(
    mesh: Mesh, routing: RoutingServiceStub
) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    mine = [route(f"erased-{number}.localhost") for number in range(3)]
    theirs = route("stays-1.localhost")
    for each in mine:
        await routing.PutRoute(pb2.PutRouteRequest(route=each), metadata=bearer(customer.key))
    await routing.PutRoute(pb2.PutRouteRequest(route=theirs), metadata=bearer(other.key))
    job = bearer(await mesh.job_key(customer))
    erased = await routing.EraseTenant(pb2.EraseTenantRequest(), metadata=job)
    assert erased.routes == 3
    assert erased.HasField("erase_time")
    assert await routing.EraseTenant(pb2.EraseTenantRequest(), metadata=job) == erased
    stub = mesh.stub(AuthorizationStub, "app_proxy")
    for each, code in [*((each, 404) for each in mine), (theirs, 401)]:
        http = auth_pb.AttributeContext.HttpRequest(host=each.host, path="/mcp")
        request = auth_pb.AttributeContext.Request(http=http)
        checked = await stub.Check(
            auth_pb.CheckRequest(attributes=auth_pb.AttributeContext(request=request))
        )
        assert checked.denied_response.status.code == code
    for again in (mine[0], route("erased-9.localhost")):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await routing.PutRoute(pb2.PutRouteRequest(route=again), metadata=bearer(customer.key))
    got = await routing.GetRoute(pb2.GetRouteRequest(host=theirs.host), metadata=bearer(other.key))
    assert got.route == theirs
