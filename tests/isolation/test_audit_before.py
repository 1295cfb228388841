"""A call that cannot be recorded is not done, and one tenant's records keep no other waiting."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import access_pb2
from google.protobuf.message_factory import GetMessageClass

from services.auth.settings import Settings
from services.shared.ids import new_deployment_id
from services.shared.keyformat import digest
from services.shared.principal import KeyKind
from services.shared.principal_messages import KEY_KINDS
from tests.audit_logs import verified, whole_log
from tests.conftest import StartMesh
from tests.contracts import Method, every_method
from tests.databases import Databases
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import details, expect_refused

AUDITED = [method for method in every_method() if method.access.audit == access_pb2.AUDIT_BEFORE]


@dataclass(frozen=True)
class Scene:
    """A mesh of its own, whose database the test takes away."""

    mesh: Mesh
    databases: Databases
    customer: Customer
    # A support key, which alone opens ChangePlan, a job's, which alone opens CloseTenant, and a
    # deployment's, which alone opens GetEnvironment.
    support: str
    job: str
    reader: str

    @property
    def auth(self) -> AuthServiceStub:
        return self.mesh.stub(AuthServiceStub, "auth")

    @asynccontextmanager
    async def superuser(self) -> AsyncIterator[Any]:
        settings = self.mesh.settings["auth"]
        assert isinstance(settings, Settings)
        connection = await self.databases.postgres.connect(settings.postgres_database)
        try:
            yield connection
        finally:
            await connection.close()

    async def counted(self) -> dict[str, int]:
        """Returns how many rows there are of whatever a call could make."""
        async with self.superuser() as connection:
            return {
                table: await connection.fetchval(f"SELECT count(*) FROM {table}")
                for table in ("tenants", "keys", "deployments", "audit_events", "revocations")
            }


@pytest.fixture
async def scene(start_mesh: StartMesh, databases: Databases) -> AsyncIterator[Scene]:
    async with start_mesh({}) as mesh:
        customer = await mesh.customer()
        issued = await mesh.stub(AuthServiceStub, "auth").IssueSupportKey(
            pb2.IssueSupportKeyRequest(
                request_id=fresh_id(),
                tenant_id=customer.tenant_id,
                reason="test",
                scopes=["plan:write"],
            ),
            metadata=bearer(mesh.operator_key),
        )
        job, reader = await mesh.job_key(customer), await environment_key(mesh, customer)
        yield Scene(mesh, databases, customer, issued.key, job, reader)


async def environment_key(mesh: Mesh, customer: Customer) -> str:
    """Returns a key of a deployment that may read its environment."""
    deployment_id = new_deployment_id()
    await mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(customer.key)
    )
    return (await mesh.key(customer, deployment_id, ("environment:read",))).key


async def called(scene: Scene, method: Method, request: Any) -> Any:
    """Calls the method with a key that opens it."""
    response = GetMessageClass(method.descriptor.output_type)
    calling = scene.mesh.channel(method.service, method.caller()).unary_unary(
        method.path, type(request).SerializeToString, response.FromString
    )
    kinds = {KEY_KINDS[kind] for kind in method.access.keys}
    key = scene.mesh.operator_key if KeyKind.OPERATOR in kinds else scene.customer.key
    if method.access.scope == "plan:write":
        key = scene.support
    if kinds == {KeyKind.JOB}:
        key = scene.job
    if kinds == {KeyKind.DEPLOYMENT}:
        key = scene.reader
    return await calling(request, metadata=bearer(key), timeout=20)


async def not_done(scene: Scene, method: Method, request: Any) -> None:
    """Calls the method, which must not be done because it cannot be recorded."""
    with expect_refused("UNAVAILABLE", "AUDIT_UNAVAILABLE"):
        await called(scene, method, request)


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("REVOKE INSERT ON audit_events FROM auth_tenant, auth_service", "SELECT 1"),
        ("ALTER TABLE audit_events RENAME TO lost", "ALTER TABLE lost RENAME TO audit_events"),
        ("ALTER TABLE audit_chains RENAME TO lost", "ALTER TABLE lost RENAME TO audit_chains"),
        ("ALTER TABLE audit_events ADD CHECK (false) NOT VALID", "SELECT 1"),
    ],
)
async def test_a_log_that_takes_no_event_lets_no_audited_method_of_any_service_through(
    scene: Scene, broken: str, mended: str
) -> None:
    assert len(AUDITED) >= 10
    before = await scene.counted()
    async with scene.superuser() as connection:
        await connection.execute(broken)
    # Side by side: each is tried again for a while before it is refused.
    await asyncio.gather(*(not_done(scene, method, method.request()) for method in AUDITED))
    requests: tuple[tuple[str, dict[str, Any]], ...] = (
        ("CreateTenant", {"request_id": fresh_id(), "name": "x"}),
        ("IssueKey", {"request_id": fresh_id()}),
        ("RevokeKey", {"key_id": scene.customer.key_id}),
        ("ChangePlan", {"plan": pb2.PLAN_SCALE}),
        ("CloseTenant", {}),
        ("CreateDeployment", {"request_id": fresh_id(), "name": "notes"}),
    )
    for name, fields in requests:
        (method,) = [method for method in AUDITED if method.descriptor.name == name]
        await not_done(scene, method, method.request(**fields))
    async with scene.superuser() as connection:
        await connection.execute(mended)
    assert await scene.counted() == before
    tenant = await scene.auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(scene.customer.key))
    assert tenant.tenant.plan == pb2.PLAN_PRO


async def test_a_support_key_that_cannot_be_recorded_in_the_tenants_log_is_not_made(
    scene: Scene,
) -> None:
    before = await scene.counted()
    async with scene.superuser() as connection:
        # The operator's own chain takes events, the tenant's does not.
        await connection.execute(
            "ALTER TABLE audit_events ADD CONSTRAINT lost CHECK (tenant_id IS NULL) NOT VALID"
        )
    with expect_refused("UNAVAILABLE", "AUDIT_UNAVAILABLE"):
        await scene.auth.IssueSupportKey(
            pb2.IssueSupportKeyRequest(
                request_id=fresh_id(), tenant_id=scene.customer.tenant_id, reason="test"
            ),
            metadata=bearer(scene.mesh.operator_key),
        )
    # One event more: that it was asked for, in the operator's chain.
    assert await scene.counted() == before | {"audit_events": before["audit_events"] + 1}


async def test_with_auths_database_away_nothing_is_done_by_any_service(scene: Scene) -> None:
    settings = scene.mesh.settings["auth"]
    assert isinstance(settings, Settings)
    name = settings.postgres_database
    connection = await scene.databases.postgres.connect()
    try:
        await connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false')
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name
        )
        answers = await asyncio.gather(
            *(called(scene, method, method.request()) for method in AUDITED),
            return_exceptions=True,
        )
        for answer in answers:
            assert isinstance(answer, grpc.aio.AioRpcError)
            info, _ = details(answer)
            assert answer.code() is grpc.StatusCode.UNAVAILABLE
            assert info.reason in {"AUDIT_UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"}
    finally:
        await connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true')
        await connection.close()


async def test_one_tenants_waiting_records_hold_one_connection_and_no_other_tenant(
    scene: Scene,
) -> None:
    other = await scene.mesh.customer()
    many = 40
    # Seen by another connection: a transaction sees the activity of one moment only.
    async with (
        scene.superuser() as seeing,
        scene.superuser() as connection,
        connection.transaction(),
    ):
        await connection.execute(
            "SELECT 1 FROM audit_chains WHERE tenant_id = $1 FOR UPDATE", scene.customer.tenant_id
        )
        held = [asyncio.ensure_future(scene.mesh.key(scene.customer)) for _ in range(many)]
        async with asyncio.timeout(30):
            while await waiting(seeing) == 0:
                await asyncio.sleep(0.05)
        # More of them than the pool has connections; the other tenant finds one all the same.
        keys = [await scene.mesh.key(other) for _ in range(12)]
        assert await waiting(seeing) <= 1
    outcomes = await asyncio.gather(*held, return_exceptions=True)
    # A machine that stalls makes some of them give up: then they were refused, and not recorded.
    refused = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
    assert {details(error)[0].reason for error in refused} <= {"AUDIT_UNAVAILABLE"}
    assert [event.sequence for event in (await whole_log(scene.mesh, other))[0]] == list(
        range(1, len(keys) + 1)
    )
    check = await verified(scene.mesh, scene.customer)
    # Two events are that the support key was made, and the deployment's.
    assert (check.events, check.problems) == (many - len(refused) + 2, [])


async def waiting(connection: Any) -> int:
    """Returns how many of auth's connections wait for a lock."""
    number: int = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        " AND query LIKE '%INSERT INTO audit_events%'"
    )
    return number


async def test_a_peer_records_for_the_key_it_presents_and_for_no_other(scene: Scene) -> None:
    peer = scene.mesh.stub(AuthServiceStub, "auth", "provisioner")
    method = "bulkhead.provisioner.v1.ProvisionerService/GetDatabaseConnection"
    await peer.RecordAuditEvent(
        pb2.RecordAuditEventRequest(method=method, peer="edge", resources={"key": "\0"}),
        metadata=bearer(scene.customer.key),
    )
    events, _ = await whole_log(scene.mesh, scene.customer)
    assert (events[-1].method, dict(events[-1].resources)) == (method, {"key": "\ufffd"})
    assert digest(scene.customer.key).hex() not in str(events)
