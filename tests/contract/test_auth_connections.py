"""Connections' ids and keys over the wire: whose they are, what opens, how they end."""

from typing import Any

import pytest
from bulkhead.auth.v1 import auth_service_pb2 as pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.common.v1 import access_pb2
from google.protobuf.duration_pb2 import Duration

from services.shared.ids import new_connection_id, new_deployment_id
from services.shared.keyformat import digest, well_formed
from tests.mesh import Mesh, bearer, fresh_id
from tests.refusals import expect_refused


@pytest.fixture(scope="session")
def auth(mesh: Mesh) -> AuthServiceStub:
    return mesh.stub(AuthServiceStub, "auth")


@pytest.fixture(scope="session")
def credentials(mesh: Mesh) -> AuthServiceStub:
    """auth, as the service credentials calls it."""
    return mesh.stub(AuthServiceStub, "auth", "credentials")


async def registered(credentials: AuthServiceStub, key: str) -> str:
    """Returns the id of a new connection that is bound to the key's tenant."""
    connection_id = new_connection_id()
    await credentials.RegisterConnection(
        pb2.RegisterConnectionRequest(connection_id=connection_id), metadata=bearer(key)
    )
    return connection_id


async def issue(
    auth: AuthServiceStub, key: str, connection_id: str, **fields: Any
) -> pb2.IssueKeyResponse:
    request = pb2.IssueKeyRequest(
        **({"request_id": fresh_id(), "connection_id": connection_id} | fields)
    )
    return await auth.IssueKey(request, metadata=bearer(key))


async def resolve(credentials: AuthServiceStub, key: str) -> pb2.Resolution:
    answer = await credentials.ResolveKeys(pb2.ResolveKeysRequest(digests=[digest(key)]))
    return answer.resolutions[0]


@pytest.mark.promise("P-22")
async def test_a_key_of_a_connection_opens_that_connection_and_nothing_else(
    mesh: Mesh, auth: AuthServiceStub, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    connection_id = await registered(credentials, customer.key)
    issued = await issue(auth, customer.key, connection_id)
    assert issued.key.startswith("smcp_1c_")
    assert well_formed(issued.key)
    assert (issued.kind, issued.connection_id, issued.deployment_id, list(issued.scopes)) == (
        access_pb2.KEY_KIND_CONNECTION,
        connection_id,
        "",
        ["tokens:read"],
    )
    principal = (await resolve(credentials, issued.key)).principal
    assert (principal.kind, principal.connection_id, principal.tenant_id) == (
        access_pb2.KEY_KIND_CONNECTION,
        connection_id,
        customer.tenant_id,
    )
    assert not principal.deployment_id
    with expect_refused("PERMISSION_DENIED", "KEY_KIND_REFUSED"):
        await auth.ListKeys(pb2.ListKeysRequest(), metadata=bearer(issued.key))


@pytest.mark.promise("P-22")
@pytest.mark.promise("P-41")
async def test_a_key_for_another_tenants_connection_is_refused_as_for_an_unknown_one(
    mesh: Mesh, auth: AuthServiceStub, credentials: AuthServiceStub
) -> None:
    owner, other = await mesh.customer(), await mesh.customer()
    connection_id = await registered(credentials, owner.key)
    messages = set()
    for target in (connection_id, new_connection_id()):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND") as refusal:
            await issue(auth, other.key, target)
        messages.add(refusal.value.details())
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await issue(auth, other.key, "", deployment_id=target)
    assert len(messages) == 1
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await credentials.RegisterConnection(
            pb2.RegisterConnectionRequest(connection_id=connection_id), metadata=bearer(other.key)
        )
    # Nor is it taken from its owner.
    assert (await issue(auth, owner.key, connection_id)).connection_id == connection_id


async def test_a_key_is_of_one_thing_and_its_scopes_are_of_its_kind(
    mesh: Mesh, auth: AuthServiceStub, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    connection_id = await registered(credentials, customer.key)
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="connection_id"):
        await issue(auth, customer.key, connection_id, deployment_id=new_deployment_id())
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="connection_id"):
        await issue(auth, customer.key, "c" * 101)
    for scope in ("connections:read", "db:read", "tokens:write"):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="scopes"):
            await issue(auth, customer.key, connection_id, scopes=[scope])
    # Who may not have tokens gives nobody a key for them, also not one without a scope.
    narrow = await mesh.key(customer, scopes=("connections:write", "keys:write"))
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await issue(auth, narrow.key, connection_id)


async def test_keys_of_a_connection_are_listed_and_rotated_as_such(
    mesh: Mesh, auth: AuthServiceStub, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    connection_id = await registered(credentials, customer.key)
    first = await issue(auth, customer.key, connection_id)
    await issue(auth, customer.key, await registered(credentials, customer.key))
    rotated = await auth.RotateKey(
        pb2.RotateKeyRequest(request_id=fresh_id(), key_id=first.key_id, grace_period=Duration()),
        metadata=bearer(customer.key),
    )
    assert (rotated.kind, rotated.connection_id, list(rotated.scopes)) == (
        access_pb2.KEY_KIND_CONNECTION,
        connection_id,
        ["tokens:read"],
    )
    assert (await resolve(credentials, rotated.key)).principal.connection_id == connection_id
    request = pb2.ListKeysRequest(connection_id=connection_id, page_size=1)
    page = await auth.ListKeys(request, metadata=bearer(customer.key))
    rest = await auth.ListKeys(
        pb2.ListKeysRequest(connection_id=connection_id, page_token=page.next_page_token),
        metadata=bearer(customer.key),
    )
    listed = [*page.keys, *rest.keys]
    assert [key.key_id for key in listed] == [rotated.key_id, first.key_id]
    assert {(key.connection_id, key.kind) for key in listed} == {
        (connection_id, access_pb2.KEY_KIND_CONNECTION)
    }
    # Another filter is another list; of two things there is no key.
    with expect_refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", field="page_token"):
        await auth.ListKeys(
            pb2.ListKeysRequest(page_token=page.next_page_token), metadata=bearer(customer.key)
        )
    request = pb2.ListKeysRequest(connection_id=connection_id, deployment_id="dep_1")
    assert not (await auth.ListKeys(request, metadata=bearer(customer.key))).keys


async def test_repeating_a_request_for_another_connections_key_shows_no_key(
    mesh: Mesh, auth: AuthServiceStub, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    one, two = [await registered(credentials, customer.key) for _ in range(2)]
    first = await issue(auth, customer.key, one, request_id="r")
    assert (await issue(auth, customer.key, one, request_id="r")).key_id == first.key_id
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await issue(auth, customer.key, two, request_id="r")


@pytest.mark.promise("P-37")
async def test_a_retired_connections_keys_are_dead_everywhere_and_none_is_issued_again(
    mesh: Mesh, auth: AuthServiceStub, credentials: AuthServiceStub
) -> None:
    customer, other = await mesh.customer(), await mesh.customer()
    connection_id = await registered(credentials, customer.key)
    key = await issue(auth, customer.key, connection_id)
    kept = await issue(auth, customer.key, await registered(credentials, customer.key))
    request = pb2.RetireConnectionRequest(connection_id=connection_id)
    # Not the owner: nothing happens, and nothing says that it exists.
    foreign = await credentials.RetireConnection(request, metadata=bearer(other.key))
    assert (foreign.revoked_keys, foreign.HasField("effect")) == (0, False)
    assert (await resolve(credentials, key.key)).HasField("principal")
    retired = await credentials.RetireConnection(request, metadata=bearer(customer.key))
    assert retired.revoked_keys == 1
    assert retired.HasField("effect")
    assert not (await resolve(credentials, key.key)).HasField("principal")
    assert (await resolve(credentials, kept.key)).HasField("principal")
    again = await credentials.RetireConnection(request, metadata=bearer(customer.key))
    assert (again.revoked_keys, again.HasField("effect")) == (0, True)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await issue(auth, customer.key, connection_id)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await credentials.RegisterConnection(
            pb2.RegisterConnectionRequest(connection_id=connection_id),
            metadata=bearer(customer.key),
        )
    with expect_refused("FAILED_PRECONDITION", "KEY_ENDED"):
        await auth.RotateKey(
            pb2.RotateKeyRequest(request_id=fresh_id(), key_id=key.key_id),
            metadata=bearer(customer.key),
        )


async def test_ids_of_connections_are_taken_in_their_own_form_from_credentials_alone(
    mesh: Mesh, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    for bad in ("", "con_x", new_deployment_id()):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="connection_id"):
            await credentials.RegisterConnection(
                pb2.RegisterConnectionRequest(connection_id=bad), metadata=bearer(customer.key)
            )
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="connection_id"):
            await credentials.RetireConnection(
                pb2.RetireConnectionRequest(connection_id=bad), metadata=bearer(customer.key)
            )
    request = pb2.RegisterConnectionRequest(connection_id=new_connection_id())
    narrow = await mesh.key(customer, scopes=("connections:read", "keys:write"))
    with expect_refused("PERMISSION_DENIED", "SCOPE_MISSING"):
        await credentials.RegisterConnection(request, metadata=bearer(narrow.key))
    with expect_refused("PERMISSION_DENIED", "PEER_REFUSED"):
        await mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterConnection(
            request, metadata=bearer(customer.key)
        )
    # Twice is fine.
    for _ in range(2):
        await credentials.RegisterConnection(request, metadata=bearer(customer.key))


async def test_a_call_with_a_connections_key_is_recorded_in_its_tenants_log(
    mesh: Mesh, auth: AuthServiceStub, credentials: AuthServiceStub
) -> None:
    customer = await mesh.customer()
    key = await issue(auth, customer.key, await registered(credentials, customer.key))
    recorded = await credentials.RecordAuditEvent(
        pb2.RecordAuditEventRequest(
            method="bulkhead.credentials.v1.CredentialsService/Vend", peer="edge"
        ),
        metadata=bearer(key.key),
    )
    log = await auth.ListAuditEvents(pb2.ListAuditEventsRequest(), metadata=bearer(customer.key))
    assert (log.events[0].event_id, log.events[0].key_id) == (recorded.event_id, key.key_id)
