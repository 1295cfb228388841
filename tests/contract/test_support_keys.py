"""Support keys: short, narrow, recorded on both sides, and in the tenant's hands."""

import asyncio
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import access_pb2
from google.protobuf.duration_pb2 import Duration

from cli.chain import ChainCheck
from services.auth.settings import Settings
from services.auth.support_rules import READ_SCOPES, SUPPORT_SCOPES
from services.shared.keyformat import digest
from tests.audit_logs import verified, whole_log
from tests.databases import Databases
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused

METHOD = "bulkhead.auth.v1.AuthService/IssueSupportKey"


@pytest.fixture(scope="session")
def auth(mesh: Mesh) -> AuthServiceStub:
    return mesh.stub(AuthServiceStub, "auth")


def asked(customer: Customer, **fields: Any) -> pb2.IssueSupportKeyRequest:
    given = {
        "request_id": fresh_id(),
        "tenant_id": customer.tenant_id,
        "reason": "ticket 4711",
    } | fields
    return pb2.IssueSupportKeyRequest(**given)


async def support_key(
    mesh: Mesh, auth: AuthServiceStub, customer: Customer, **fields: Any
) -> pb2.IssueSupportKeyResponse:
    return await auth.IssueSupportKey(asked(customer, **fields), metadata=bearer(mesh.operator_key))


@pytest.mark.promise("P-30")
async def test_a_support_key_is_a_key_of_that_tenant_alone(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    foreign = await mesh.key(other)
    issued = await support_key(mesh, auth, customer)
    tenant = await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(issued.key))
    assert tenant.tenant.tenant_id == customer.tenant_id
    assert set(issued.scopes) == READ_SCOPES
    keys = await auth.ListKeys(pb2.ListKeysRequest(), metadata=bearer(issued.key))
    assert {key.key_id for key in keys.keys} == {customer.key_id, issued.key_id}
    for opened in (
        auth.RevokeKey(pb2.RevokeKeyRequest(key_id=foreign.key_id), metadata=bearer(issued.key)),
        auth.IssueKey(pb2.IssueKeyRequest(request_id=fresh_id()), metadata=bearer(issued.key)),
    ):
        with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
            await opened


async def test_the_tenant_sees_the_key_its_reason_and_its_end(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    issued = await support_key(
        mesh, auth, customer, reason="  née: ticket 4711 ", lifetime=Duration(seconds=900)
    )
    listed = await auth.ListKeys(pb2.ListKeysRequest(), metadata=bearer(customer.key))
    (shown,) = [key for key in listed.keys if key.key_id == issued.key_id]
    assert (shown.support_reason, shown.kind) == ("née: ticket 4711", access_pb2.KEY_KIND_TENANT)
    assert shown.expire_time == issued.expire_time
    lived = issued.expire_time.ToNanoseconds() - shown.create_time.ToNanoseconds()
    assert lived == 900 * 10**9
    own = [key.support_reason for key in listed.keys if key.key_id != issued.key_id]
    assert own == [""]


async def test_the_tenants_log_has_the_reason_the_key_and_what_was_done_with_it(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    issued = await support_key(mesh, auth, customer, scopes=["plan:write"])
    await auth.ChangePlan(pb2.ChangePlanRequest(plan=pb2.PLAN_SCALE), metadata=bearer(issued.key))
    (support, change), _ = await whole_log(mesh, customer)
    assert (support.method, support.reason) == (METHOD, "ticket 4711")
    assert dict(support.resources) == {"tenant": customer.tenant_id, "key": issued.key_id}
    assert change.key_id == issued.key_id
    assert (await verified(mesh, customer)).problems == []
    tenant = await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(customer.key))
    assert tenant.tenant.plan == pb2.PLAN_SCALE


async def test_the_operators_chain_has_it_too(
    mesh: Mesh, auth: AuthServiceStub, databases: Databases
) -> None:
    customer = await mesh.customer()
    issued = await support_key(mesh, auth, customer)
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    connection = await databases.postgres.connect(settings.postgres_database)
    try:
        rows = await connection.fetch(
            "SELECT method, reason, resources->>'key' AS key, hash = audit_hash(e) AS fits"
            " FROM audit_events e WHERE tenant_id IS NULL ORDER BY sequence DESC LIMIT 2"
        )
        gaps = await connection.fetchval(
            "SELECT max(sequence) - count(*) FROM audit_events WHERE tenant_id IS NULL"
        )
    finally:
        await connection.close()
    done, before = rows
    assert (done["method"], done["reason"], done["key"]) == (METHOD, "ticket 4711", issued.key_id)
    assert (before["method"], before["reason"], before["key"]) == (METHOD, "", None)
    assert (gaps, done["fits"], before["fits"]) == (0, True, True)


async def test_the_tenant_revokes_it(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    issued = await support_key(mesh, auth, customer)
    await auth.RevokeKey(pb2.RevokeKeyRequest(key_id=issued.key_id), metadata=bearer(customer.key))
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(issued.key))


async def test_it_ends_by_itself(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    issued = await support_key(mesh, auth, customer, lifetime=Duration(seconds=1))
    assert issued.key
    async with asyncio.timeout(30):
        while await valid(mesh, issued.key):
            await asyncio.sleep(0.1)


async def valid(mesh: Mesh, key: str) -> bool:
    """Whether auth says that the key is someone's."""
    answer = await mesh.stub(AuthServiceStub, "auth", "ratelimit").ResolveKeys(
        pb2.ResolveKeysRequest(digests=[digest(key)])
    )
    return answer.resolutions[0].HasField("principal")


async def test_the_same_request_again_gives_the_same_key_a_fresh_secret_and_is_recorded_again(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    request = asked(customer)
    first = await auth.IssueSupportKey(request, metadata=bearer(mesh.operator_key))
    second = await auth.IssueSupportKey(request, metadata=bearer(mesh.operator_key))
    assert (first.key_id, first.expire_time) == (second.key_id, second.expire_time)
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(first.key))
    for change in (
        pb2.IssueSupportKeyRequest(reason="another"),
        pb2.IssueSupportKeyRequest(lifetime=Duration(seconds=60)),
        pb2.IssueSupportKeyRequest(scopes=["audit:read"]),
    ):
        other = pb2.IssueSupportKeyRequest()
        other.CopyFrom(request)
        other.MergeFrom(change)
        with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
            await auth.IssueSupportKey(other, metadata=bearer(mesh.operator_key))
    await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(second.key))
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await auth.IssueSupportKey(request, metadata=bearer(mesh.operator_key))
    events, _ = await whole_log(mesh, customer)
    assert [event.resources["key"] for event in events] == [first.key_id] * 2


async def test_a_tenants_own_request_never_meets_a_support_key(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    request = asked(customer, request_id="r")
    issued = await auth.IssueSupportKey(request, metadata=bearer(mesh.operator_key))
    for request_id in ("r", "support/r", "supportr"):
        own = await auth.IssueKey(
            pb2.IssueKeyRequest(request_id=request_id, scopes=issued.scopes),
            metadata=bearer(customer.key),
        )
        assert own.key_id != issued.key_id
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="request_id"):
        await auth.IssueKey(
            pb2.IssueKeyRequest(request_id="support\nr"), metadata=bearer(customer.key)
        )


async def test_nothing_that_outlives_it_is_made_with_it(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    widest = await support_key(mesh, auth, customer, scopes=sorted(SUPPORT_SCOPES))
    assert set(widest.scopes) == SUPPORT_SCOPES
    calls = (
        auth.IssueKey(pb2.IssueKeyRequest(request_id=fresh_id()), metadata=bearer(widest.key)),
        auth.RotateKey(
            pb2.RotateKeyRequest(request_id=fresh_id(), key_id=customer.key_id),
            metadata=bearer(widest.key),
        ),
    )
    for calling in calls:
        with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
            await calling
    # Nor does the tenant get one for good by rotating it: it may carry what a tenant may not have.
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await auth.RotateKey(
            pb2.RotateKeyRequest(request_id=fresh_id(), key_id=widest.key_id),
            metadata=bearer(customer.key),
        )


@pytest.mark.parametrize("scope", ["keys:write", "tenants:write", "db:read", "db:write", "x", ""])
async def test_a_scope_that_no_support_key_has_is_refused(
    mesh: Mesh, auth: AuthServiceStub, scope: str
) -> None:
    customer = await mesh.customer()
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="scopes"):
        await support_key(mesh, auth, customer, scopes=["audit:read", scope])
    assert (await whole_log(mesh, customer))[0] == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", ""),
        ("request_id", "r" * 65),
        ("tenant_id", ""),
        ("tenant_id", "t" * 101),
        ("reason", ""),
        ("reason", "  "),
        ("reason", "r" * 201),
        ("reason", "a\nb"),
        ("lifetime", Duration(seconds=0)),
        ("lifetime", Duration(seconds=0, nanos=999_999_000)),
        ("lifetime", Duration(seconds=-1)),
        ("lifetime", Duration(seconds=3_601)),
        ("scopes", ["audit:read"] * 33),
    ],
)
async def test_a_bad_field_is_refused_by_name(
    mesh: Mesh, auth: AuthServiceStub, field: str, value: Any
) -> None:
    customer = await mesh.customer()
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await support_key(mesh, auth, customer, **{field: value})


async def test_an_unknown_or_closed_tenant_is_not_found_and_nothing_is_made(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    job = await mesh.job_key(customer)
    await provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(job))
    for tenant_id in (customer.tenant_id, "ten_" + "0" * 26):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await support_key(mesh, auth, customer, tenant_id=tenant_id)


async def test_only_an_operator_may(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await auth.IssueSupportKey(asked(customer), metadata=bearer(customer.key))


async def test_many_support_keys_at_once_neither_stop_each_other_nor_break_a_chain(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customers = [await mesh.customer() for _ in range(3)]
    await asyncio.gather(
        *(support_key(mesh, auth, customer) for customer in customers * 8),
        *(mesh.key(customer) for customer in customers * 8),
    )
    for customer in customers:
        check: ChainCheck = await verified(mesh, customer)
        assert (check.events, check.problems) == (16, [])
