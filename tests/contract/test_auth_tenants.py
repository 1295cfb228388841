"""The plan and the end of a tenant over the wire."""

import asyncio
from dataclasses import replace

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub

from services.shared.ids import new_deployment_id
from services.shared.keyformat import digest
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import expect_refused


@pytest.fixture(scope="session")
def auth(mesh: Mesh) -> AuthServiceStub:
    return mesh.stub(AuthServiceStub, "auth")


@pytest.fixture(scope="session")
def provisioner(mesh: Mesh) -> AuthServiceStub:
    """auth, as the provisioner calls it."""
    return mesh.stub(AuthServiceStub, "auth", "provisioner")


async def support_key(mesh: Mesh, customer: Customer) -> str:
    """Returns a key with which the operator may change the customer's plan."""
    issued = await mesh.stub(AuthServiceStub, "auth").IssueSupportKey(
        pb2.IssueSupportKeyRequest(
            request_id=fresh_id(),
            tenant_id=customer.tenant_id,
            reason="moves to another plan",
            scopes=["plan:write"],
        ),
        metadata=bearer(mesh.operator_key),
    )
    return str(issued.key)


async def registered(provisioner: AuthServiceStub, key: str) -> str:
    deployment_id = new_deployment_id()
    await provisioner.RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(key)
    )
    return deployment_id


async def principal(mesh: Mesh, key: str) -> pb2.Principal | None:
    answer = await mesh.stub(AuthServiceStub, "auth", "app_proxy").ResolveKeys(
        pb2.ResolveKeysRequest(digests=[digest(key)])
    )
    found = answer.resolutions[0]
    return found.principal if found.HasField("principal") else None


async def test_the_operator_moves_a_tenant_to_another_plan(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer(pb2.PLAN_FREE)
    key = await support_key(mesh, customer)
    changed = await auth.ChangePlan(
        pb2.ChangePlanRequest(plan=pb2.PLAN_SCALE), metadata=bearer(key)
    )
    assert (changed.tenant.tenant_id, changed.tenant.plan) == (customer.tenant_id, pb2.PLAN_SCALE)
    assert changed.effect.HasField("effective_at")
    found = await principal(mesh, customer.key)
    assert found is not None
    assert found.plan == pb2.PLAN_SCALE


async def test_a_tenant_does_not_choose_what_it_pays(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer(pb2.PLAN_FREE)
    request = pb2.ChangePlanRequest(plan=pb2.PLAN_SCALE)
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await auth.ChangePlan(request, metadata=bearer(customer.key))
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="scopes"):
        await mesh.key(customer, scopes=("plan:write",))
    found = await principal(mesh, customer.key)
    assert found is not None
    assert found.plan == pb2.PLAN_FREE


async def test_a_plan_that_is_none_is_refused(mesh: Mesh, auth: AuthServiceStub) -> None:
    key = await support_key(mesh, await mesh.customer())
    for plan in (pb2.PLAN_UNSPECIFIED, 17):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="plan"):
            await auth.ChangePlan(pb2.ChangePlanRequest(plan=plan), metadata=bearer(key))  # type: ignore[arg-type]


async def test_a_closed_tenants_keys_open_nothing_but_its_last_job(
    mesh: Mesh, auth: AuthServiceStub, provisioner: AuthServiceStub
) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    deployment_id = await registered(provisioner, customer.key)
    deployment_key = await mesh.key(customer, deployment_id)
    other_job, job = await mesh.job_key(customer), await mesh.job_key(customer)
    closed = await provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(job))
    assert closed.revoked_keys == 3
    assert closed.effect.HasField("effective_at")
    for key in (customer.key, deployment_key.key, other_job):
        assert await principal(mesh, key) is None
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(customer.key))
    left = await principal(mesh, closed.job_key)
    assert left is not None
    assert (left.key_id, left.bound_peer) == (closed.job_key_id, "provisioner")
    assert left.expire_time == closed.job_key_expire_time
    # What the tenant had is torn down with it, and nobody else is touched.
    await provisioner.RetireDeployment(
        pb2.RetireDeploymentRequest(deployment_id=deployment_id), metadata=bearer(closed.job_key)
    )
    assert await principal(mesh, other.key) is not None


async def test_nothing_is_made_of_a_closed_tenant(mesh: Mesh, provisioner: AuthServiceStub) -> None:
    customer = await mesh.customer()
    job = await mesh.job_key(customer)
    closed = await provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(job))
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await registered(provisioner, closed.job_key)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await support_key(mesh, customer)


async def test_keys_that_are_made_while_a_tenant_is_closed_are_ended_with_it(
    mesh: Mesh, provisioner: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    job = await mesh.job_key(customer)
    made, closed = await asyncio.gather(
        asyncio.gather(*(mesh.key(customer) for _ in range(8)), return_exceptions=True),
        provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(job)),
    )
    keys = [each.key for each in made if isinstance(each, pb2.IssueKeyResponse)]
    assert [await principal(mesh, key) for key in keys] == [None] * len(keys)
    assert closed.revoked_keys == 1 + len(keys)


async def test_closing_again_with_the_jobs_key_gives_another(
    mesh: Mesh, provisioner: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    job = await mesh.job_key(customer)
    first = await provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(job))
    assert first.revoked_keys == 1
    # Its answer was lost: the key that was presented asks again.
    second = await provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(job))
    assert (second.revoked_keys, second.job_key_id != first.job_key_id) == (1, True)
    assert await principal(mesh, first.job_key) is None
    third = await provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(second.job_key))
    assert await principal(mesh, job) is None
    assert await principal(mesh, third.job_key) is not None


async def test_only_who_may_close_a_tenant_does(mesh: Mesh, provisioner: AuthServiceStub) -> None:
    customer = await mesh.customer()
    narrow = await mesh.key(customer, scopes=("deployments:write",))
    # Whoever may close the tenant has to say that its job is to.
    job = await provisioner.Delegate(
        pb2.DelegateRequest(purpose="create"), metadata=bearer(customer.key)
    )
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await mesh.job_key(replace(customer, key=narrow.key))
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="scopes"):
        await mesh.job_key(customer, ("keys:write",))
    refused = (
        (customer.key, "KEY_KIND_REFUSED"),
        (narrow.key, "KEY_KIND_REFUSED"),
        (job.key, "SCOPE_MISSING"),
    )
    for key, reason in refused:
        with expect_refused("PERMISSION_DENIED", reason):
            await provisioner.CloseTenant(pb2.CloseTenantRequest(), metadata=bearer(key))
    assert await principal(mesh, customer.key) is not None
