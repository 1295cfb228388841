"""Bindings over the wire: lent, swapped, ended, listed, and each refusal."""

import asyncio
from typing import Any

import grpc
import pytest
from bulkhead.auth.v1 import auth_service_pb2 as auth_pb2
from bulkhead.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from services.credentials.settings import Settings
from services.shared.ids import new_deployment_id
from services.shared.postgres import connect
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.refusals import details, expect_refused

FAR = Timestamp(seconds=4_000_000_000)


@pytest.fixture(scope="session")
def credentials(mesh: Mesh) -> CredentialsServiceStub:
    return mesh.stub(CredentialsServiceStub, "credentials")


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


async def deployment(mesh: Mesh, customer: Customer) -> str:
    """Returns a deployment as auth knows it; nothing runs for it."""
    deployment_id = new_deployment_id()
    await mesh.stub(AuthServiceStub, "auth", "provisioner").RegisterDeployment(
        auth_pb2.RegisterDeploymentRequest(deployment_id=deployment_id),
        metadata=bearer(customer.key),
    )
    return deployment_id


async def connection(credentials: CredentialsServiceStub, customer: Customer, **fields: Any) -> str:
    request: dict[str, Any] = {
        "request_id": fresh_id(),
        "provider": "github",
        "name": "Bot",
        "static_token": pb2.StaticToken(token="t"),
    }
    answer = await credentials.CreateConnection(
        pb2.CreateConnectionRequest(**(request | fields)), metadata=bearer(customer.key)
    )
    return str(answer.connection.connection_id)


async def bind(
    credentials: CredentialsServiceStub,
    customer: Customer,
    deployment_id: str,
    connection_id: str,
    **fields: Any,
) -> pb2.Binding:
    request = pb2.BindConnectionRequest(
        deployment_id=deployment_id, connection_id=connection_id, **fields
    )
    return (await credentials.BindConnection(request, metadata=bearer(customer.key))).binding


async def listed(credentials: CredentialsServiceStub, key: str, **fields: Any) -> list[pb2.Binding]:
    answer = await credentials.ListBindings(pb2.ListBindingsRequest(**fields), metadata=bearer(key))
    return list(answer.bindings)


async def unbind(credentials: CredentialsServiceStub, customer: Customer, binding_id: str) -> None:
    await credentials.UnbindConnection(
        pb2.UnbindConnectionRequest(binding_id=binding_id), metadata=bearer(customer.key)
    )


async def set_exclusive(
    credentials: CredentialsServiceStub, customer: Customer, connection_id: str, exclusive: bool
) -> pb2.Connection:
    request = pb2.UpdateConnectionRequest(connection_id=connection_id, exclusive=exclusive)
    return (await credentials.UpdateConnection(request, metadata=bearer(customer.key))).connection


async def age(mesh: Mesh, binding_id: str) -> None:
    """Lets the binding's time be over."""
    settings = mesh.settings["credentials"]
    assert isinstance(settings, Settings)
    db = await connect(settings)
    try:
        await db.execute("SET ROLE credentials_service")
        await db.execute("UPDATE bindings SET expires_at = now() WHERE binding_id = $1", binding_id)
    finally:
        await db.close()


async def test_a_connection_is_lent_under_its_providers_name_or_another(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    lent, to = await connection(credentials, customer), await deployment(mesh, customer)
    bound = await bind(credentials, customer, to, lent)
    assert bound.binding_id.startswith("bnd_")
    assert (bound.deployment_id, bound.connection_id) == (to, lent)
    assert (bound.alias, bound.provider) == ("github", "github")
    assert bound.state == pb2.CONNECTION_STATE_ACTIVE
    narrow = await bind(credentials, customer, to, lent, alias="ci", expire_time=FAR)
    assert (list(narrow.scope_ceiling), narrow.expire_time) == ([], FAR)
    assert await listed(credentials, customer.key) == [narrow, bound]
    await unbind(credentials, customer, bound.binding_id)
    assert await listed(credentials, customer.key) == [narrow]
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await unbind(credentials, customer, bound.binding_id)


async def test_the_same_binding_again_changes_nothing_and_another_finds_the_alias_taken(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    to = await deployment(mesh, customer)
    one, two = [await connection(credentials, customer) for _ in range(2)]
    made = await asyncio.gather(*(bind(credentials, customer, to, one) for _ in range(5)))
    assert len({binding.binding_id for binding in made}) == 1
    for other in ((two, {}), (one, {"expire_time": FAR})):
        with expect_refused("ALREADY_EXISTS", "ALIAS_TAKEN") as refused:
            await bind(credentials, customer, to, other[0], **other[1])
        metadata = details(refused.value)[0].metadata
        assert dict(metadata) == {"binding_id": made[0].binding_id}
    assert await listed(credentials, customer.key) == [made[0]]


async def test_a_swap_is_one_step_and_leaves_no_moment_without_a_binding(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    to = await deployment(mesh, customer)
    one, two = [await connection(credentials, customer) for _ in range(2)]
    first = await bind(credentials, customer, to, one)
    key = (await mesh.key(customer, to)).key
    swapping = True

    async def watch() -> set[int]:
        seen = set()
        while swapping:
            seen.add(len(await listed(credentials, key)))
        return seen

    watching = asyncio.create_task(watch())
    for _ in range(5):
        await bind(credentials, customer, to, two, replace=True)
        last = await bind(credentials, customer, to, one, replace=True)
    swapping = False
    assert await watching == {1}
    assert last.binding_id != first.binding_id
    again = await bind(credentials, customer, to, one, replace=True)
    assert again == last


async def test_of_many_who_want_one_alias_at_once_one_gets_it(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    to = await deployment(mesh, customer)
    lent = [await connection(credentials, customer) for _ in range(4)]
    results = await asyncio.gather(
        *(bind(credentials, customer, to, one) for one in lent), return_exceptions=True
    )
    refused = [one for one in results if isinstance(one, grpc.aio.AioRpcError)]
    assert {details(one)[0].reason for one in refused} == {"ALIAS_TAKEN"}
    assert (len(refused), len(await listed(credentials, customer.key))) == (3, 1)


@pytest.mark.promise("P-22")
async def test_an_exclusive_connection_serves_one_and_names_its_holder_to_its_own_tenant(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    lent = await connection(credentials, customer, exclusive=True)
    tos = [await deployment(mesh, customer) for _ in range(4)]
    results = await asyncio.gather(
        *(bind(credentials, customer, to, lent) for to in tos), return_exceptions=True
    )
    (held,) = (one for one in results if not isinstance(one, BaseException))
    for one in results:
        if isinstance(one, grpc.aio.AioRpcError):
            info, _ = details(one)
            assert info.reason == "CONNECTION_EXCLUSIVE"
            assert dict(info.metadata) == {"deployment_id": held.deployment_id}
    # Its holder may have it on other terms, but not twice.
    changed = await bind(
        credentials, customer, held.deployment_id, lent, expire_time=FAR, replace=True
    )
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_EXCLUSIVE"):
        await bind(credentials, customer, held.deployment_id, lent, alias="second")
    # Over, it is in nobody's way.
    await age(mesh, changed.binding_id)
    other = next(to for to in tos if to != held.deployment_id)
    assert (await bind(credentials, customer, other, lent)).deployment_id == other


@pytest.mark.promise("P-22")
async def test_what_serves_several_cannot_become_exclusive(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    lent = await connection(credentials, customer)
    bindings = [
        await bind(credentials, customer, await deployment(mesh, customer), lent) for _ in range(3)
    ]
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_EXCLUSIVE"):
        await set_exclusive(credentials, customer, lent, True)
    await unbind(credentials, customer, bindings[0].binding_id)
    await age(mesh, bindings[1].binding_id)
    assert (await set_exclusive(credentials, customer, lent, True)).exclusive
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_EXCLUSIVE"):
        await bind(credentials, customer, bindings[0].deployment_id, lent)
    assert not (await set_exclusive(credentials, customer, lent, False)).exclusive
    await bind(credentials, customer, bindings[0].deployment_id, lent)


async def test_a_binding_that_is_over_does_not_keep_its_alias(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    to, lent = await deployment(mesh, customer), await connection(credentials, customer)
    over = await bind(credentials, customer, to, lent, expire_time=FAR)
    await age(mesh, over.binding_id)
    fresh = await bind(credentials, customer, to, lent)
    assert await listed(credentials, customer.key) == [fresh]


async def test_a_ceiling_that_nobody_could_keep_is_refused(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    to, key = await deployment(mesh, customer), pb2.ApiKey(key="k")
    by_key = {"provider": "linear", "static_token": None, "api_key": key}
    for fields in ({}, by_key):
        lent = await connection(credentials, customer, **fields)
        with expect_refused("FAILED_PRECONDITION", "SCOPE_CEILING"):
            await bind(credentials, customer, to, lent, scope_ceiling=["read"])
    assert await listed(credentials, customer.key) == []


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("alias", {"alias": "Upper"}),
        ("alias", {"alias": "1st"}),
        ("alias", {"alias": "a b"}),
        ("alias", {"alias": "a\n"}),
        ("alias", {"alias": "a" * 64}),
        ("scope_ceiling", {"scope_ceiling": ["a b"]}),
        ("scope_ceiling", {"scope_ceiling": [""]}),
        ("scope_ceiling", {"scope_ceiling": ["a\n"]}),
        ("scope_ceiling", {"scope_ceiling": [str(number) for number in range(101)]}),
        ("expire_time", {"expire_time": Timestamp(seconds=1)}),
        ("expire_time", {"expire_time": Timestamp(seconds=10**15)}),
    ],
)
async def test_a_binding_with_a_bad_field_is_refused_by_name(
    mesh: Mesh,
    credentials: CredentialsServiceStub,
    lender: tuple[Customer, str, str],
    field: str,
    fields: dict[str, Any],
) -> None:
    customer, to, lent = lender
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await bind(credentials, customer, to, lent, **fields)
    assert await listed(credentials, customer.key) == []


@pytest.fixture(scope="session")
async def lender(mesh: Mesh, credentials: CredentialsServiceStub) -> tuple[Customer, str, str]:
    """A customer with a deployment and a connection that are not brought together."""
    customer = await mesh.customer()
    return customer, await deployment(mesh, customer), await connection(credentials, customer)


async def test_what_does_not_exist_is_not_found(
    credentials: CredentialsServiceStub, lender: tuple[Customer, str, str]
) -> None:
    customer, to, lent = lender
    for unknown in ("", "x", "dep_" + "0" * 26):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await bind(credentials, customer, unknown, lent)
    for unknown in ("", "x", "con_" + "0" * 26):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await bind(credentials, customer, to, unknown)
    for unknown in ("", "x", "bnd_" + "0" * 26):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await unbind(credentials, customer, unknown)


async def test_what_is_deleted_cannot_be_lent(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    lent, to = await connection(credentials, customer), await deployment(mesh, customer)
    await credentials.DeleteConnection(
        pb2.DeleteConnectionRequest(connection_id=lent), metadata=bearer(customer.key)
    )
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await bind(credentials, customer, to, lent)


@pytest.mark.promise("P-22")
async def test_a_deployments_key_sees_its_own_bindings_alone(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    one, two = [await deployment(mesh, customer) for _ in range(2)]
    lent = [await connection(credentials, customer) for _ in range(2)]
    own = await bind(credentials, customer, one, lent[0])
    other = await bind(credentials, customer, two, lent[1])
    key = (await mesh.key(customer, one)).key
    assert await listed(credentials, key) == [own]
    assert await listed(credentials, key, deployment_id=one) == [own]
    assert await listed(credentials, key, connection_id=lent[1]) == []
    for foreign in (two, new_deployment_id()):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await listed(credentials, key, deployment_id=foreign)
    assert await listed(credentials, customer.key, deployment_id=two) == [other]
    assert await listed(credentials, customer.key, connection_id=lent[0]) == [own]


async def test_bindings_are_listed_in_pages_newest_first(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    to, lent = await deployment(mesh, customer), await connection(credentials, customer)
    made = [await bind(credentials, customer, to, lent, alias=alias) for alias in "abc"]
    found: list[pb2.Binding] = []
    token = ""
    while True:
        page = await credentials.ListBindings(
            pb2.ListBindingsRequest(page_size=2, page_token=token), metadata=bearer(customer.key)
        )
        found += page.bindings
        token = page.next_page_token
        if not token:
            break
        # It goes on with no other list.
        with expect_refused("INVALID_ARGUMENT", "PAGE_TOKEN_INVALID", field="page_token"):
            await listed(credentials, customer.key, page_token=token, deployment_id=to)
    assert found == made[::-1]
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="page_size"):
        await listed(credentials, customer.key, page_size=1_001)


async def test_a_deployment_that_goes_has_nothing_lent_to_it_any_more(
    mesh: Mesh, credentials: CredentialsServiceStub, customer: Customer
) -> None:
    to, lent = await deployment(mesh, customer), await connection(credentials, customer)
    await bind(credentials, customer, to, lent)
    await bind(credentials, customer, to, lent, alias="b")
    kept = await bind(credentials, customer, await deployment(mesh, customer), lent)
    provisioner = mesh.stub(CredentialsServiceStub, "credentials", "provisioner")
    job = await mesh.job_key(customer)
    for ended in (2, 0):
        answer = await provisioner.ReleaseDeployment(
            pb2.ReleaseDeploymentRequest(deployment_id=to), metadata=bearer(job)
        )
        assert answer.bindings_ended == ended
    assert await listed(credentials, customer.key) == [kept]
    # auth would still say that it is the tenant's: here it is known to be going.
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await bind(credentials, customer, to, lent)
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await provisioner.ReleaseDeployment(
            pb2.ReleaseDeploymentRequest(deployment_id="x"), metadata=bearer(job)
        )
