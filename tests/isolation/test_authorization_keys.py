"""A completion at the front door is done as the key that began it, which may be gone by then."""

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub

from services.auth.settings import Settings
from services.credentials.ports import Act
from tests.audit_logs import whole_log
from tests.databases import Databases
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble, refuses
from tests.providers import allowed
from tests.refusals import details, expect_refused

FINISH = f"bulkhead.credentials.v1.CredentialsService/{Act.FINISH_AUTHORIZATION}"
NOTHING = "A" * 43
Ending = Callable[[Mesh, Databases, Customer, str], Awaitable[None]]


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


@pytest.fixture(scope="session")
def door(mesh: Mesh) -> CredentialsServiceStub:
    """credentials, as the front door calls it."""
    return mesh.stub(CredentialsServiceStub, "credentials", "app_proxy")


async def begun(mesh: Mesh, key: str) -> tuple[str, str, str]:
    """Returns connection, state and code of an authorization that the provider agreed to."""
    started = await mesh.stub(CredentialsServiceStub, "credentials").StartAuthorization(
        pb2.StartAuthorizationRequest(request_id=fresh_id(), provider="loopback", name="notes"),
        metadata=bearer(key),
    )
    state, code = await allowed(started.authorization_url)
    return started.connection.connection_id, state, code


async def finish(door: CredentialsServiceStub, state: str, code: str) -> Any:
    return await door.FinishAuthorization(pb2.FinishAuthorizationRequest(state=state, code=code))


async def describe(door: CredentialsServiceStub, state: str) -> Any:
    return await door.DescribeAuthorization(pb2.DescribeAuthorizationRequest(state=state))


async def answer(call: Awaitable[Any]) -> tuple[Any, ...]:
    """Returns all that a refused caller can see."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code(), refused.value.details(), details(refused.value)[0]


async def connection_state(mesh: Mesh, customer: Customer, connection_id: str) -> Any:
    got = await mesh.stub(CredentialsServiceStub, "credentials").GetConnection(
        pb2.GetConnectionRequest(connection_id=connection_id), metadata=bearer(customer.key)
    )
    return got.connection.state


async def finishes(mesh: Mesh, customer: Customer) -> list[auth_pb2.AuditEvent]:
    events, _ = await whole_log(mesh, customer)
    return [event for event in events if event.method == FINISH]


async def revoked(mesh: Mesh, _: Databases, customer: Customer, key_id: str) -> None:
    request = auth_pb2.RevokeKeyRequest(key_id=key_id)
    await mesh.stub(AuthServiceStub, "auth").RevokeKey(request, metadata=bearer(customer.key))


async def rotated(mesh: Mesh, _: Databases, customer: Customer, key_id: str) -> None:
    # Without a grace period.
    request = auth_pb2.RotateKeyRequest(request_id=fresh_id(), key_id=key_id)
    await mesh.stub(AuthServiceStub, "auth").RotateKey(request, metadata=bearer(customer.key))


async def expired(mesh: Mesh, databases: Databases, _: Customer, key_id: str) -> None:
    settings = mesh.settings["auth"]
    assert isinstance(settings, Settings)
    superuser = await databases.postgres.connect(settings.postgres_database)
    try:
        await superuser.execute("UPDATE keys SET expires_at = now() WHERE key_id = $1", key_id)
    finally:
        await superuser.close()


@pytest.mark.promise("P-37")
@pytest.mark.promise("P-41")
@pytest.mark.parametrize("end", [revoked, rotated, expired])
async def test_what_a_key_began_that_is_gone_by_now_is_as_if_it_never_was(
    mesh: Mesh,
    databases: Databases,
    door: CredentialsServiceStub,
    customer: Customer,
    provider: ProviderDouble,
    end: Ending,
) -> None:
    issued = await mesh.stub(AuthServiceStub, "auth").IssueKey(
        auth_pb2.IssueKeyRequest(request_id=fresh_id()), metadata=bearer(customer.key)
    )
    connection_id, state, code = await begun(mesh, issued.key)
    asked = await describe(door, state)
    assert asked.connection_name == "notes"
    await end(mesh, databases, customer, issued.key_id)
    exchanged = provider.seen["/token"]
    never = await answer(finish(door, NOTHING, code))
    assert never[0] is grpc.StatusCode.NOT_FOUND
    for said in (code, ""):
        assert await answer(finish(door, state, said)) == never
    if end is not expired:
        # When a key ends is remembered with it; here that was changed beneath.
        assert await answer(describe(door, state)) == never
    assert provider.seen["/token"] == exchanged
    found = await connection_state(mesh, customer, connection_id)
    assert found == pb2.CONNECTION_STATE_AUTHORIZING
    assert await finishes(mesh, customer) == []


@pytest.mark.promise("P-33")
async def test_a_completion_is_in_the_log_of_whose_key_began_it_whatever_comes_of_it(
    mesh: Mesh, door: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> None:
    done, refused, cancelled = [await begun(mesh, customer.key) for _ in range(3)]
    await finish(door, *done[1:])
    provider.next("/token", refuses("invalid_grant"))
    with expect_refused("FAILED_PRECONDITION", "AUTHORIZATION_REFUSED"):
        await finish(door, *refused[1:])
    await finish(door, cancelled[1], "")
    for state in (done[1], NOTHING):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await finish(door, state, "code")
    events = await finishes(mesh, customer)
    assert [event.resources["connection"] for event in events] == [
        connection_id for connection_id, *_ in (done, refused, cancelled)
    ]
    assert {(event.key_id, event.peer) for event in events} == {(customer.key_id, "app_proxy")}


@pytest.mark.promise("P-33")
async def test_a_completion_that_cannot_be_written_down_does_nothing_and_leaves_the_link_as_good(
    mesh: Mesh,
    databases: Databases,
    door: CredentialsServiceStub,
    customer: Customer,
    provider: ProviderDouble,
) -> None:
    connection_id, state, code = await begun(mesh, customer.key)
    exchanged, settings = provider.seen["/token"], mesh.settings["auth"]
    assert isinstance(settings, Settings)
    superuser, name = (
        await databases.postgres.connect(settings.postgres_database),
        f"stuck_{fresh_id()}",
    )
    try:
        await superuser.execute(
            f"ALTER TABLE audit_events ADD CONSTRAINT {name} CHECK"
            f" (tenant_id <> '{customer.tenant_id}') NOT VALID"
        )
        for said in (code, ""):
            with expect_refused("UNAVAILABLE", "AUDIT_UNAVAILABLE"):
                await finish(door, state, said)
    finally:
        await superuser.execute(f"ALTER TABLE audit_events DROP CONSTRAINT IF EXISTS {name}")
        await superuser.close()
    assert provider.seen["/token"] == exchanged
    await finish(door, state, code)
    found = await connection_state(mesh, customer, connection_id)
    assert found == pb2.CONNECTION_STATE_ACTIVE
    assert len(await finishes(mesh, customer)) == 1
