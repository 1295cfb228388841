"""A service of an earlier release beside one of this, on the schema that this one has made.

As it is in the middle of a rolling update: whatever one of them writes the other one reads.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import grpc
import pytest
from bulkhead.app_proxy.v1 import routing_service_pb2 as routing
from bulkhead.app_proxy.v1.routing_service_pb2_grpc import RoutingServiceStub
from bulkhead.auth.v1 import auth_service_pb2 as auth
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as credentials
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from bulkhead.envoy.auth.v3 import authorization_pb2 as envoy
from bulkhead.envoy.auth.v3.authorization_pb2_grpc import AuthorizationStub
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner
from bulkhead.provisioner.v1.provisioner_service_pb2_grpc import ProvisionerServiceStub
from bulkhead.ratelimit.v1 import ratelimit_service_pb2 as ratelimit
from bulkhead.ratelimit.v1.ratelimit_service_pb2_grpc import RatelimitServiceStub
from google.rpc import code_pb2

from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK, free_ports
from services.shared.keyformat import digest
from services.shared.tls import Identity, channel_credentials
from tests.conftest import StartMesh
from tests.lending import Lender
from tests.mesh import PATIENCE_SECONDS, Mesh, bearer, fresh_id
from tests.previous_release import before_newest_migration, previous_commit
from tests.processes import ServiceProcess

Stub = TypeVar("Stub")


@dataclass(frozen=True)
class Side:
    """One of the two releases: how its replica of the service is called."""

    pki: Mapping[str, Paths]
    service: str
    port: int

    @asynccontextmanager
    async def stub(self, stub: type[Stub], peer: str = "edge") -> AsyncIterator[Stub]:
        """Yields a stub that calls with the certificate of `peer`."""
        files = self.pki[peer]
        identity = Identity.read(files.certificate, files.key, files.authority)
        options = [("grpc.ssl_target_name_override", self.service)]
        async with grpc.aio.secure_channel(
            f"{LOOPBACK}:{self.port}", channel_credentials(identity), options
        ) as channel:
            yield stub(channel)  # type: ignore[call-arg]


@dataclass(frozen=True)
class Two:
    """A mesh of this release, and beside one of its services a replica of an earlier one."""

    mesh: Mesh
    old: Side
    new: Side


Exercise = Callable[[Two], Awaitable[None]]


@pytest.fixture(scope="module")
async def common_mesh(start_mesh: StartMesh) -> AsyncIterator[Mesh]:
    async with start_mesh({}) as mesh:
        yield mesh


@asynccontextmanager
async def beside(mesh: Mesh, service: str, tree: Path, log: Path) -> AsyncIterator[Two]:
    """Yields the mesh and a replica of the release in `tree`; it ends well."""
    listen, health, http = (f"{LOOPBACK}:{port}" for port in free_ports(3))
    own = {"listen": listen, "health_listen": health}
    if service == "app_proxy":
        own["http_listen"] = http
    replica = ServiceProcess(service, mesh.settings[service].model_copy(update=own), log, tree)
    try:
        await replica.start()
        old, new = (Side(mesh.pki, service, port) for port in (replica.port, mesh.ports[service]))
        yield Two(mesh, old, new)
        assert await replica.end() == 0, replica.last_words
    finally:
        await replica.end()


async def keys_are_issued_known_and_revoked_by_both(two: Two) -> None:
    operator = bearer(two.mesh.operator_key)
    for one, other in ((two.old, two.new), (two.new, two.old)):
        async with (
            one.stub(AuthServiceStub) as here,
            other.stub(AuthServiceStub) as there,
            other.stub(AuthServiceStub, "app_proxy") as resolving,
        ):
            request = auth.CreateTenantRequest(request_id=fresh_id(), name="A", plan=auth.PLAN_PRO)
            created = await here.CreateTenant(request, metadata=operator)
            issued = await there.IssueKey(
                auth.IssueKeyRequest(request_id=fresh_id()), metadata=bearer(created.key)
            )
            wanted = auth.ResolveKeysRequest(digests=[digest(created.key), digest(issued.key)])
            known = (await resolving.ResolveKeys(wanted)).resolutions
            assert [each.principal.tenant_id for each in known] == [created.tenant_id] * 2
            await here.RevokeKey(
                auth.RevokeKeyRequest(key_id=issued.key_id), metadata=bearer(created.key)
            )
            known = (await resolving.ResolveKeys(wanted)).resolutions
            assert [each.HasField("principal") for each in known] == [True, False]
            listed = await there.ListAuditEvents(
                auth.ListAuditEventsRequest(), metadata=bearer(created.key)
            )
            assert {event.method.rpartition("/")[2] for event in listed.events} >= {
                "IssueKey",
                "RevokeKey",
            }


async def calls_are_counted_by_both(two: Two) -> None:
    lender = Lender(two.mesh, await two.mesh.customer())
    deployment_id = await lender.deployment()
    key = (await two.mesh.key(lender.customer, deployment_id)).key
    for number, side in enumerate((two.old, two.new, two.old), 1):
        async with (
            side.stub(RatelimitServiceStub, "app_proxy") as limits,
            two.new.stub(RatelimitServiceStub) as here,
            two.old.stub(RatelimitServiceStub) as there,
        ):
            item = ratelimit.AcquireItem(key_digest=digest(key), cost=1)
            (taken,) = (await limits.Acquire(ratelimit.AcquireRequest(items=[item]))).results
            assert taken.decision == ratelimit.DECISION_ALLOWED
            used = ratelimit.GetUsageRequest(deployment_id=deployment_id)
            metadata = bearer(lender.customer.key)
            assert (await here.GetUsage(used, metadata=metadata)).used == number
            assert (await there.GetUsage(used, metadata=metadata)).used == number


async def connections_are_lent_and_vended_by_both(two: Two) -> None:
    lender = Lender(two.mesh, await two.mesh.customer())
    metadata = bearer(lender.customer.key)
    deployment_id = await lender.deployment()
    key = bearer((await two.mesh.key(lender.customer, deployment_id)).key)
    for one, other, alias in ((two.old, two.new, "first"), (two.new, two.old, "second")):
        async with (
            one.stub(CredentialsServiceStub) as here,
            other.stub(CredentialsServiceStub) as there,
        ):
            made = await here.CreateConnection(
                credentials.CreateConnectionRequest(
                    request_id=fresh_id(),
                    provider="github",
                    name="Bot",
                    static_token=credentials.StaticToken(token=f"token-{alias}"),
                ),
                metadata=metadata,
            )
            await there.BindConnection(
                credentials.BindConnectionRequest(
                    deployment_id=deployment_id,
                    connection_id=made.connection.connection_id,
                    alias=alias,
                ),
                metadata=metadata,
            )
            vend = credentials.VendRequest(items=[credentials.VendItem(alias=alias)])
            for side in (here, there):
                (vended,) = (await side.Vend(vend, metadata=key)).results
                assert vended.token.token == f"token-{alias}"


Metadata = tuple[tuple[str, str], ...]


async def deployments_are_made_by_both(two: Two) -> None:
    metadata = bearer((await two.mesh.customer()).key)
    async with (
        two.old.stub(ProvisionerServiceStub) as old,
        two.new.stub(ProvisionerServiceStub) as new,
    ):
        for here, there in ((old, new), (new, old)):
            # An earlier release may have no name for the step that is being done.
            named = await made(here, new, metadata)
            assert named in await listed(there, metadata)


async def deployments_come_and_go_by_both(two: Two) -> None:
    metadata = bearer((await two.mesh.customer()).key)
    async with (
        two.old.stub(ProvisionerServiceStub) as old,
        two.new.stub(ProvisionerServiceStub) as new,
    ):
        for here, there in ((old, new), (new, old)):
            named = await made(here, there, metadata)
            gone = await there.DeleteDeployment(
                provisioner.DeleteDeploymentRequest(deployment_id=named), metadata=metadata
            )
            await done(here, gone.operation, metadata)
            for side in (here, there):
                assert not await listed(side, metadata)


async def made(
    here: ProvisionerServiceStub, there: ProvisionerServiceStub, metadata: Metadata
) -> str:
    """Returns the id of a deployment that was made by one replica and is seen by another."""
    begun = await here.CreateDeployment(
        provisioner.CreateDeploymentRequest(request_id=fresh_id(), name="notes"), metadata=metadata
    )
    await done(there, begun.operation, metadata)
    named = begun.deployment.deployment_id
    assert named in await listed(there, metadata)
    return named


async def listed(stub: ProvisionerServiceStub, metadata: Metadata) -> set[str]:
    """Returns the ids of the tenant's deployments, by what the replica says."""
    answer = await stub.ListDeployments(provisioner.ListDeploymentsRequest(), metadata=metadata)
    return {each.deployment_id for each in answer.deployments}


async def done(
    stub: ProvisionerServiceStub,
    operation: provisioner.Operation,
    metadata: tuple[tuple[str, str], ...],
) -> None:
    """Returns when the operation has succeeded, by what the replica says."""
    request = provisioner.WaitOperationRequest(operation_id=operation.operation_id)
    stream = stub.WaitOperation(request, metadata=metadata, timeout=PATIENCE_SECONDS)
    async for change in stream:
        operation = change.operation
    assert operation.state == provisioner.OPERATION_STATE_SUCCEEDED, operation


async def routes_are_kept_and_opened_by_both(two: Two) -> None:
    lender = Lender(two.mesh, await two.mesh.customer())
    metadata = bearer(lender.customer.key)
    for one, other in ((two.old, two.new), (two.new, two.old)):
        deployment_id = await lender.deployment()
        key = (await two.mesh.key(lender.customer, deployment_id)).key
        host = f"{fresh_id()}.localhost"
        route = routing.Route(
            host=host, deployment_id=deployment_id, state=routing.ROUTE_STATE_RUNNING, name="notes"
        )
        async with (
            one.stub(RoutingServiceStub, "provisioner") as here,
            other.stub(RoutingServiceStub, "provisioner") as there,
        ):
            await here.PutRoute(routing.PutRouteRequest(route=route), metadata=metadata)
            assert [await status(side, host, key) for side in (one, other)] == [200, 200]
            assert [await status(side, host, "no key") for side in (one, other)] == [401, 401]
            kept = await there.GetRoute(routing.GetRouteRequest(host=host), metadata=metadata)
            assert kept.route.deployment_id == deployment_id
            await there.DeleteRoute(
                routing.DeleteRouteRequest(deployment_id=deployment_id), metadata=metadata
            )
            assert [await status(side, host, key) for side in (one, other)] == [404, 404]


async def status(side: Side, host: str, key: str) -> int:
    """Returns what the door answers a request; 200 when it lets it through."""
    http = envoy.AttributeContext.HttpRequest(
        host=host, path="/", headers={"authorization": f"Bearer {key}"}
    )
    request = envoy.AttributeContext.Request(http=http)
    async with side.stub(AuthorizationStub) as door:
        answer = await door.Check(
            envoy.CheckRequest(attributes=envoy.AttributeContext(request=request))
        )
    refused = int(answer.denied_response.status.code)
    return 200 if answer.status.code == code_pb2.OK else refused


# What every earlier release can do; one that has no name for a step of ours cannot take it.
EXERCISES: dict[str, Exercise] = {
    "auth": keys_are_issued_known_and_revoked_by_both,
    "ratelimit": calls_are_counted_by_both,
    "credentials": connections_are_lent_and_vended_by_both,
    "provisioner": deployments_are_made_by_both,
    "app_proxy": routes_are_kept_and_opened_by_both,
}
# What the last one can do.
LATEST: dict[str, Exercise] = EXERCISES | {"provisioner": deployments_come_and_go_by_both}


@pytest.mark.parametrize("service", EXERCISES)
async def test_the_release_before_the_newest_migration_runs_on_what_it_made(
    common_mesh: Mesh, service: str, tmp_path: Path
) -> None:
    tree = await asyncio.to_thread(before_newest_migration, service, tmp_path / "tree")
    async with beside(common_mesh, service, tree, tmp_path / "old.log") as two:
        await EXERCISES[service](two)


async def test_the_release_before_this_one_runs_beside_it(
    common_mesh: Mesh, tmp_path: Path
) -> None:
    tree = await asyncio.to_thread(previous_commit, tmp_path / "tree")

    async def exercise(service: str) -> None:
        async with beside(common_mesh, service, tree, tmp_path / f"{service}.log") as two:
            await LATEST[service](two)

    await asyncio.gather(*(exercise(service) for service in LATEST))
