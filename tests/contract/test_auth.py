"""auth over the wire: success, each refusal, each bad input."""

import asyncio
from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import access_pb2

from services.auth.domain import USUAL_DEPLOYMENT_SCOPES
from services.shared.ids import new_deployment_id
from services.shared.keyformat import digest, new_key, well_formed
from services.shared.principal import KeyKind
from tests.mesh import Mesh, bearer, fresh_id
from tests.refusals import expect_refused

PREFIX = "bulkhead.auth.v1.AuthService"


OWN_METHOD = "bulkhead.provisioner.v1.ProvisionerService/GetDatabaseConnection"


@pytest.fixture(scope="session")
def auth(mesh: Mesh) -> AuthServiceStub:
    return mesh.stub(AuthServiceStub, "auth")


async def test_a_created_tenant_reads_itself_with_its_first_key(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    created = await auth.CreateTenant(
        pb2.CreateTenantRequest(request_id=fresh_id(), name=" Acme ", plan=pb2.PLAN_SCALE),
        metadata=bearer(mesh.operator_key),
    )
    assert created.tenant_id.startswith("ten_")
    assert well_formed(created.key)
    answer = await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(created.key))
    assert (answer.tenant.tenant_id, answer.tenant.name, answer.tenant.plan) == (
        created.tenant_id,
        "Acme",
        pb2.PLAN_SCALE,
    )


async def test_creating_a_tenant_again_by_the_same_request_creates_nothing_new(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    request = pb2.CreateTenantRequest(request_id=fresh_id(), name="Acme")
    first, second = await asyncio.gather(
        *(auth.CreateTenant(request, metadata=bearer(mesh.operator_key)) for _ in range(2))
    )
    assert (first.tenant_id, first.key_id) == (second.tenant_id, second.key_id)
    third = await auth.CreateTenant(request, metadata=bearer(mesh.operator_key))
    assert third.key_id == first.key_id
    await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(third.key))
    # Its key is in use now, so its secret cannot be given again.
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await auth.CreateTenant(request, metadata=bearer(mesh.operator_key))
    request.name = "Other"
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await auth.CreateTenant(request, metadata=bearer(mesh.operator_key))


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("request_id", pb2.CreateTenantRequest(name="Acme")),
        ("request_id", pb2.CreateTenantRequest(name="Acme", request_id="r" * 65)),
        ("name", pb2.CreateTenantRequest(request_id="r")),
        ("name", pb2.CreateTenantRequest(request_id="r", name="  ")),
        ("name", pb2.CreateTenantRequest(request_id="r", name="n" * 101)),
        ("name", pb2.CreateTenantRequest(request_id="r", name="a\nb")),
        ("plan", pb2.CreateTenantRequest(request_id="r", name="Acme", plan=17)),  # type: ignore[arg-type]
    ],
)
async def test_a_tenant_with_a_bad_field_is_refused_by_name(
    mesh: Mesh, auth: AuthServiceStub, field: str, request_: pb2.CreateTenantRequest
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await auth.CreateTenant(request_, metadata=bearer(mesh.operator_key))


async def test_only_an_operator_creates_tenants(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    request = pb2.CreateTenantRequest(request_id=fresh_id(), name="Acme")
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await auth.CreateTenant(request, metadata=bearer(customer.key))
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(mesh.operator_key))


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Basic abc", "Bearer abc", "nonsense"])
async def test_without_a_proper_key_nothing_opens(
    auth: AuthServiceStub, authorization: str | None
) -> None:
    metadata = () if authorization is None else (("authorization", authorization),)
    reason = "KEY_MISSING" if authorization is None else "KEY_INVALID"
    with expect_refused("UNAUTHENTICATED", reason):
        await auth.GetTenant(pb2.GetTenantRequest(), metadata=metadata)


async def test_a_well_formed_key_that_nobody_issued_is_refused(auth: AuthServiceStub) -> None:
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(new_key(KeyKind.TENANT)))


async def test_a_key_of_a_deployment_carries_the_scopes_it_was_issued_with(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    deployment_id = await registered(mesh, customer.key)
    full = await mesh.key(customer, deployment_id)
    assert set(full.scopes) == USUAL_DEPLOYMENT_SCOPES
    assert (full.kind, full.deployment_id) == (access_pb2.KEY_KIND_DEPLOYMENT, deployment_id)
    narrow = await mesh.key(customer, deployment_id, ("db:read",))
    assert list(narrow.scopes) == ["db:read"]
    resolved = await resolve(mesh, narrow.key)
    assert resolved.principal.deployment_id == deployment_id
    assert resolved.principal.tenant_id == customer.tenant_id


async def test_a_key_cannot_give_more_than_it_has(mesh: Mesh, auth: AuthServiceStub) -> None:
    customer = await mesh.customer()
    narrow = await mesh.key(customer, scopes=("keys:write", "usage:read"))
    request = pb2.IssueKeyRequest(request_id=fresh_id(), scopes=["audit:read"])
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await auth.IssueKey(request, metadata=bearer(narrow.key))
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="scopes"):
        await mesh.key(customer, scopes=("plan:write",))
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await auth.ListKeys(
            pb2.ListKeysRequest(),
            metadata=bearer((await mesh.key(customer, scopes=("audit:read",))).key),
        )


@pytest.mark.promise("P-04")
@pytest.mark.promise("P-41")
async def test_a_key_for_another_tenants_deployment_is_refused_as_for_an_unknown_one(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    owner, other = await mesh.customer(), await mesh.customer()
    deployment_id = await registered(mesh, owner.key)
    messages = set()
    for target in (deployment_id, new_deployment_id()):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND") as refusal:
            await mesh.key(other, target)
        messages.add(refusal.value.details())
    assert len(messages) == 1


async def test_repeating_a_request_for_a_key_before_its_use_gives_the_same_key_id(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    request = pb2.IssueKeyRequest(request_id=fresh_id(), name="ci")
    first = await auth.IssueKey(request, metadata=bearer(customer.key))
    second = await auth.IssueKey(request, metadata=bearer(customer.key))
    assert first.key_id == second.key_id
    assert first.key != second.key
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(first.key))
    await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(second.key))
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await auth.IssueKey(request, metadata=bearer(customer.key))


async def test_a_revoked_key_is_refused_and_revoking_again_changes_nothing(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(key.key))
    request = pb2.RevokeKeyRequest(key_id=key.key_id)
    first = await auth.RevokeKey(request, metadata=bearer(customer.key))
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(key.key))
    second = await auth.RevokeKey(request, metadata=bearer(customer.key))
    assert first.revoke_time == second.revoke_time


@pytest.mark.promise("P-41")
async def test_another_tenants_key_cannot_be_revoked_and_is_not_admitted_to_exist(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    owner, other = await mesh.customer(), await mesh.customer()
    for key_id in (owner.key_id, "key_unknown"):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await auth.RevokeKey(pb2.RevokeKeyRequest(key_id=key_id), metadata=bearer(other.key))
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="key_id"):
        await auth.RevokeKey(pb2.RevokeKeyRequest(), metadata=bearer(other.key))
    await auth.GetTenant(pb2.GetTenantRequest(), metadata=bearer(owner.key))


async def test_keys_are_listed_in_pages_newest_first_without_their_secrets(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    issued = [await mesh.key(customer) for _ in range(3)]
    found: list[pb2.Key] = []
    token = ""
    while True:
        page = await auth.ListKeys(
            pb2.ListKeysRequest(page_size=2, page_token=token), metadata=bearer(customer.key)
        )
        found.extend(page.keys)
        token = page.next_page_token
        if not token:
            break
    assert [key.key_id for key in found] == [k.key_id for k in reversed(issued)] + [customer.key_id]
    text = str(found)
    assert not any(key.key[8:-6] in text for key in issued)
    assert found[0].hint.endswith(issued[-1].key[-4:])


async def test_a_page_token_serves_its_own_list_and_tenant_only(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    one, two = await mesh.customer(), await mesh.customer()
    await mesh.key(one)
    page = await auth.ListKeys(pb2.ListKeysRequest(page_size=1), metadata=bearer(one.key))
    for token in (page.next_page_token, "nonsense", "!!", "AAAA"):
        with expect_refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", field="page_token"):
            await auth.ListKeys(pb2.ListKeysRequest(page_token=token), metadata=bearer(two.key))
    with expect_refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", field="page_token"):
        await auth.ListAuditEvents(
            pb2.ListAuditEventsRequest(page_token=page.next_page_token), metadata=bearer(one.key)
        )
    for size in (-1, 1_001):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="page_size"):
            await auth.ListKeys(pb2.ListKeysRequest(page_size=size), metadata=bearer(one.key))


async def test_the_audit_log_has_each_administrative_call_of_the_tenant_and_no_others(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    key = await mesh.key(customer)
    await mesh.key(other)
    await auth.RevokeKey(pb2.RevokeKeyRequest(key_id=key.key_id), metadata=bearer(customer.key))
    log = await auth.ListAuditEvents(pb2.ListAuditEventsRequest(), metadata=bearer(customer.key))
    assert [event.method for event in log.events] == [f"{PREFIX}/RevokeKey", f"{PREFIX}/IssueKey"]
    assert dict(log.events[0].resources) == {"key": key.key_id}
    assert {event.key_id for event in log.events} == {customer.key_id}
    assert {event.peer for event in log.events} == {"edge"}


async def test_keys_resolve_in_one_batch_in_order(mesh: Mesh) -> None:
    customer = await mesh.customer()
    stub = mesh.stub(AuthServiceStub, "auth", "app_proxy")
    unknown = digest(new_key(KeyKind.TENANT))
    answer = await stub.ResolveKeys(
        pb2.ResolveKeysRequest(digests=[unknown, digest(customer.key), unknown])
    )
    found = [item.principal.key_id for item in answer.resolutions]
    assert found == ["", customer.key_id, ""]
    assert not answer.resolutions[0].HasField("principal")
    for digests in ([], [b"short"], [unknown] * 257):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="digests"):
            await stub.ResolveKeys(pb2.ResolveKeysRequest(digests=digests))


async def test_a_watcher_hears_of_a_revocation_at_once_and_of_silence_never(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    key = await mesh.key(customer)
    stream = mesh.stub(AuthServiceStub, "auth", "app_proxy").WatchRevocations(
        pb2.WatchRevocationsRequest(), timeout=10
    )
    events = aiter(stream)
    heartbeat = await anext(events)
    assert not heartbeat.key_ids
    await auth.RevokeKey(pb2.RevokeKeyRequest(key_id=key.key_id), metadata=bearer(customer.key))
    async for event in events:
        if event.key_ids:
            assert list(event.key_ids) == [key.key_id]
            assert event.sequence == heartbeat.sequence + 1
            break
    stream.cancel()


async def test_a_job_key_works_from_the_service_that_holds_it_and_nowhere_else(mesh: Mesh) -> None:
    customer = await mesh.customer()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="purpose"):
        await provisioner.Delegate(pb2.DelegateRequest(), metadata=bearer(customer.key))
    job = await provisioner.Delegate(
        pb2.DelegateRequest(purpose="create"), metadata=bearer(customer.key)
    )
    deployment_id = new_deployment_id()
    request = pb2.RegisterDeploymentRequest(deployment_id=deployment_id)
    await provisioner.RegisterDeployment(request, metadata=bearer(job.key))
    elsewhere = mesh.stub(AuthServiceStub, "auth", "app_proxy")
    with expect_refused("UNAUTHENTICATED", "KEY_INVALID"):
        await elsewhere.RecordAuditEvent(
            pb2.RecordAuditEventRequest(method=OWN_METHOD, peer="edge"),
            metadata=bearer(job.key),
        )
    listed = await mesh.stub(AuthServiceStub, "auth").ListKeys(
        pb2.ListKeysRequest(), metadata=bearer(customer.key)
    )
    assert job.key_id not in {key.key_id for key in listed.keys}


async def test_registering_a_deployment_twice_is_fine_and_anothers_is_unknown(mesh: Mesh) -> None:
    owner, other = await mesh.customer(), await mesh.customer()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    deployment_id = await registered(mesh, owner.key)
    request = pb2.RegisterDeploymentRequest(deployment_id=deployment_id)
    await provisioner.RegisterDeployment(request, metadata=bearer(owner.key))
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await provisioner.RegisterDeployment(request, metadata=bearer(other.key))
    for bad in ("", "dep_x", "ten_" + "0" * 26):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="deployment_id"):
            await provisioner.RegisterDeployment(
                pb2.RegisterDeploymentRequest(deployment_id=bad), metadata=bearer(owner.key)
            )


async def test_a_retired_deployments_keys_are_dead_and_none_is_issued_again(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    deployment_id = await registered(mesh, customer.key)
    key = await mesh.key(customer, deployment_id)
    request = pb2.RetireDeploymentRequest(deployment_id=deployment_id)
    assert (
        await provisioner.RetireDeployment(request, metadata=bearer(customer.key))
    ).revoked_keys == 1
    assert (
        await provisioner.RetireDeployment(request, metadata=bearer(customer.key))
    ).revoked_keys == 0
    assert not (await resolve(mesh, key.key)).HasField("principal")
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await mesh.key(customer, deployment_id)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await provisioner.RegisterDeployment(
            pb2.RegisterDeploymentRequest(deployment_id=deployment_id),
            metadata=bearer(customer.key),
        )


@pytest.mark.promise("P-41")
async def test_retiring_another_tenants_deployment_changes_nothing(mesh: Mesh) -> None:
    owner, other = await mesh.customer(), await mesh.customer()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    deployment_id = await registered(mesh, owner.key)
    key = await mesh.key(owner, deployment_id)
    answer = await provisioner.RetireDeployment(
        pb2.RetireDeploymentRequest(deployment_id=deployment_id), metadata=bearer(other.key)
    )
    assert answer.revoked_keys == 0
    assert (await resolve(mesh, key.key)).HasField("principal")


async def test_a_deployment_is_verified_for_its_owner_only(mesh: Mesh) -> None:
    owner, other = await mesh.customer(), await mesh.customer()
    deployment_id = await registered(mesh, owner.key)
    request = pb2.VerifyDeploymentRequest(deployment_id=deployment_id)
    ratelimit = mesh.stub(AuthServiceStub, "auth", "ratelimit")
    assert await ratelimit.VerifyDeployment(request, metadata=bearer(owner.key)) is not None
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await ratelimit.VerifyDeployment(request, metadata=bearer(other.key))
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="deployment_id"):
        await ratelimit.VerifyDeployment(pb2.VerifyDeploymentRequest(), metadata=bearer(owner.key))


async def test_a_service_records_into_the_log_of_the_presented_keys_tenant(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    provisioner = mesh.stub(AuthServiceStub, "auth", "provisioner")
    request = pb2.RecordAuditEventRequest(
        method=OWN_METHOD, peer="edge", resources={"deployment": "dep_\x1b1"}
    )
    recorded = await provisioner.RecordAuditEvent(request, metadata=bearer(customer.key))
    log = await auth.ListAuditEvents(pb2.ListAuditEventsRequest(), metadata=bearer(customer.key))
    assert [event.event_id for event in log.events] == [recorded.event_id]
    assert log.events[0].resources["deployment"] == "dep_\ufffd1"
    # Nobody speaks for another service.
    for method in ("", "x.Y/Z", "bulkhead.auth.v1.AuthService/RevokeKey"):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="method"):
            await provisioner.RecordAuditEvent(
                pb2.RecordAuditEventRequest(method=method, peer="edge"),
                metadata=bearer(customer.key),
            )


@pytest.mark.promise("P-38")
async def test_what_a_caller_sends_is_told_back_to_it_in_short(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    for scope in ("s" * 60_000, "\x01" * 20_000):
        request = pb2.IssueKeyRequest(request_id=fresh_id(), scopes=[scope])
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="scopes") as refusal:
            await auth.IssueKey(request, metadata=bearer(customer.key))
        assert len(refusal.value.details() or "") < 1_000


@pytest.mark.parametrize("sent", [b"\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a"])
async def test_what_is_no_message_is_refused_after_the_key(mesh: Mesh, sent: bytes) -> None:
    customer = await mesh.customer()
    call = mesh.channel("auth").unary_unary(
        "/bulkhead.auth.v1.AuthService/RevokeKey",
        request_serializer=bytes,
        response_deserializer=pb2.RevokeKeyResponse.FromString,
    )
    with expect_refused("UNAUTHENTICATED", "KEY_MISSING"):
        await call(sent)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="request"):
        await call(sent, metadata=bearer(customer.key))


async def test_methods_for_peers_are_refused_to_the_front_door(
    mesh: Mesh, auth: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    calls: list[Any] = [
        auth.ResolveKeys(pb2.ResolveKeysRequest(digests=[b"0" * 32])),
        auth.Delegate(pb2.DelegateRequest(purpose="x"), metadata=bearer(customer.key)),
    ]
    for call in calls:
        with expect_refused("PERMISSION_DENIED", "PEER_REFUSED"):
            await call


async def registered(mesh: Mesh, key: str) -> str:
    """Returns the id of a new deployment that is bound to the key's tenant."""
    deployment_id = new_deployment_id()
    await mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterDeployment(
        pb2.RegisterDeploymentRequest(deployment_id=deployment_id), metadata=bearer(key)
    )
    return deployment_id


async def resolve(mesh: Mesh, key: str) -> pb2.Resolution:
    """Returns what auth says of a key."""
    answer = await mesh.stub(AuthServiceStub, "auth", "app_proxy").ResolveKeys(
        pb2.ResolveKeysRequest(digests=[digest(key)])
    )
    return answer.resolutions[0]
