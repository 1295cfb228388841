"""Connections over the wire: made, found, changed, deleted, and each refusal."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb2
from bulkhead.credentials.v1.credentials_service_pb2_grpc import CredentialsServiceStub
from google.protobuf.timestamp_pb2 import Timestamp

from services.shared.ids import new_connection_id
from tests.canaries import API_KEY, STATIC_TOKEN
from tests.mesh import Customer, Mesh, bearer, fresh_id
from tests.provider_double import ProviderDouble, answers, drops_before, refuses
from tests.refusals import details, expect_refused

LONG_AGO = Timestamp(seconds=1)
FAR = Timestamp(seconds=4_000_000_000)


@pytest.fixture(scope="session")
def credentials(mesh: Mesh) -> CredentialsServiceStub:
    return mesh.stub(CredentialsServiceStub, "credentials")


@pytest.fixture
async def customer(mesh: Mesh) -> Customer:
    return await mesh.customer()


def wanted(**fields: Any) -> pb2.CreateConnectionRequest:
    """Returns a request for a connection with a static token, unless `fields` say otherwise."""
    request = {"request_id": fresh_id(), "provider": "github", "name": "Bot"} | fields
    if not {"static_token", "api_key", "client_credentials"} & set(request):
        request["static_token"] = pb2.StaticToken(token=STATIC_TOKEN)
    return pb2.CreateConnectionRequest(**request)


def client_credentials(provider: ProviderDouble, **fields: Any) -> pb2.ClientCredentials:
    client = provider.client
    given = {"client_id": client.client_id, "client_secret": client.client_secret} | fields
    return pb2.ClientCredentials(**given)


async def create(
    credentials: CredentialsServiceStub, customer: Customer, **fields: Any
) -> pb2.Connection:
    answer = await credentials.CreateConnection(wanted(**fields), metadata=bearer(customer.key))
    return answer.connection


async def get(
    credentials: CredentialsServiceStub, customer: Customer, connection_id: str
) -> pb2.Connection:
    request = pb2.GetConnectionRequest(connection_id=connection_id)
    return (await credentials.GetConnection(request, metadata=bearer(customer.key))).connection


async def listed(
    credentials: CredentialsServiceStub, customer: Customer, **fields: Any
) -> list[pb2.Connection]:
    request = pb2.ListConnectionsRequest(**fields)
    answer = await credentials.ListConnections(request, metadata=bearer(customer.key))
    return list(answer.connections)


async def update(
    credentials: CredentialsServiceStub, customer: Customer, connection_id: str, **fields: Any
) -> pb2.Connection:
    request = pb2.UpdateConnectionRequest(connection_id=connection_id, **fields)
    return (await credentials.UpdateConnection(request, metadata=bearer(customer.key))).connection


async def delete(
    credentials: CredentialsServiceStub, customer: Customer, connection_id: str
) -> pb2.DeleteConnectionResponse:
    request = pb2.DeleteConnectionRequest(connection_id=connection_id)
    return await credentials.DeleteConnection(request, metadata=bearer(customer.key))


async def test_the_catalogue_is_listed(
    credentials: CredentialsServiceStub, customer: Customer
) -> None:
    answer = await credentials.ListProviders(
        pb2.ListProvidersRequest(), metadata=bearer(customer.key)
    )
    providers = {provider.name: provider for provider in answer.providers}
    assert list(providers) == sorted(providers)
    loopback = providers["loopback"]
    assert (loopback.operator_client, loopback.revocable) == (True, True)
    assert list(loopback.default_scopes) == ["read", "write"]
    assert not providers["github"].operator_client
    assert not providers["unrevoking"].revocable
    assert list(providers["particular"].kinds) == [pb2.CONNECTION_KIND_API_KEY]
    assert list(providers["particular"].parameters) == ["subdomain"]


async def test_a_static_token_is_kept_and_never_shown(
    credentials: CredentialsServiceStub, customer: Customer
) -> None:
    token = pb2.StaticToken(token=STATIC_TOKEN, expire_time=FAR)
    made = await create(credentials, customer, static_token=token, exclusive=True)
    assert made.connection_id.startswith("con_")
    assert (made.name, made.provider, made.exclusive) == ("Bot", "github", True)
    assert made.kind == pb2.CONNECTION_KIND_STATIC_TOKEN
    assert made.state == pb2.CONNECTION_STATE_ACTIVE
    assert made.token_expire_time == FAR
    assert STATIC_TOKEN not in str(made)
    assert await get(credentials, customer, made.connection_id) == made
    assert await listed(credentials, customer) == [made]


async def test_an_api_key_has_the_users_name_and_parameters_that_its_provider_wants(
    credentials: CredentialsServiceStub, customer: Customer
) -> None:
    key = pb2.ApiKey(key=f" {API_KEY} ", username="mia@example.com")
    made = await create(
        credentials, customer, provider="particular", api_key=key, parameters={"subdomain": "acme"}
    )
    assert made.kind == pb2.CONNECTION_KIND_API_KEY
    assert dict(made.parameters) == {"subdomain": "acme"}


async def test_a_client_that_acts_for_itself_proves_itself_at_once(
    credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> None:
    client = client_credentials(provider, scopes=["read"])
    made = await create(credentials, customer, provider="loopback", client_credentials=client)
    assert made.kind == pb2.CONNECTION_KIND_CLIENT_CREDENTIALS
    assert made.client_id == provider.client.client_id
    assert list(made.scopes) == ["read"]
    assert made.HasField("token_expire_time")


async def test_one_request_id_makes_one_connection_however_many_ask_at_once(
    credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> None:
    for fields in (
        {"static_token": pb2.StaticToken(token="one")},
        {"provider": "loopback", "client_credentials": client_credentials(provider)},
    ):
        request = wanted(**fields)
        made = await asyncio.gather(
            *(
                credentials.CreateConnection(request, metadata=bearer(customer.key))
                for _ in range(5)
            )
        )
        assert len({answer.connection.connection_id for answer in made}) == 1
    assert len(await listed(credentials, customer)) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda request: request.static_token.MergeFrom(pb2.StaticToken(token="other")),
        lambda request: request.static_token.expire_time.CopyFrom(FAR),
        lambda request: setattr(request, "name", "Other"),
        lambda request: setattr(request, "exclusive", True),
        lambda request: setattr(request, "provider", "slack"),
    ],
)
async def test_a_request_id_with_other_content_is_refused(
    credentials: CredentialsServiceStub,
    customer: Customer,
    change: Callable[[pb2.CreateConnectionRequest], None],
) -> None:
    request = wanted()
    await credentials.CreateConnection(request, metadata=bearer(customer.key))
    change(request)
    with expect_refused("ALREADY_EXISTS", "REQUEST_REPLAYED"):
        await credentials.CreateConnection(request, metadata=bearer(customer.key))
    assert len(await listed(credentials, customer)) == 1


BASIC = {"provider": "particular", "parameters": {"subdomain": "acme"}}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("request_id", {"request_id": ""}),
        ("request_id", {"request_id": "r" * 65}),
        ("provider", {"provider": ""}),
        ("provider", {"provider": "nobody"}),
        ("name", {"name": " "}),
        ("name", {"name": "n" * 64}),
        ("name", {"name": "a\nb"}),
        ("credential", {"provider": "particular", "parameters": {"subdomain": "acme"}}),
        ("parameters.x", {"parameters": {"x": "y"}}),
        (
            "parameters.subdomain",
            {**BASIC, "parameters": {}, "api_key": pb2.ApiKey(key="k", username="u")},
        ),
        (
            "parameters.subdomain",
            {**BASIC, "parameters": {"subdomain": "a.b"}, "api_key": pb2.ApiKey(key="k")},
        ),
        (
            "parameters.subdomain",
            {**BASIC, "parameters": {"subdomain": "acme\n"}, "api_key": pb2.ApiKey(key="k")},
        ),
        ("static_token.token", {"static_token": pb2.StaticToken()}),
        ("static_token.token", {"static_token": pb2.StaticToken(token="a\r\nb: c")}),
        ("static_token.token", {"static_token": pb2.StaticToken(token="grün")}),
        ("static_token.token", {"static_token": pb2.StaticToken(token="t" * 8_193)}),
        (
            "static_token.expire_time",
            {"static_token": pb2.StaticToken(token="t", expire_time=LONG_AGO)},
        ),
        ("api_key.key", {**BASIC, "api_key": pb2.ApiKey(username="u")}),
        ("api_key.username", {**BASIC, "api_key": pb2.ApiKey(key="k")}),
        ("api_key.username", {**BASIC, "api_key": pb2.ApiKey(key="k", username="a:b")}),
        (
            "api_key.username",
            {"provider": "loopback", "api_key": pb2.ApiKey(key="k", username="u")},
        ),
        (
            "client_credentials.client_id",
            {"provider": "loopback", "client_credentials": pb2.ClientCredentials()},
        ),
        (
            "client_credentials.client_secret",
            {"provider": "loopback", "client_credentials": pb2.ClientCredentials(client_id="a")},
        ),
        (
            "client_credentials.scopes",
            {
                "provider": "loopback",
                "client_credentials": pb2.ClientCredentials(
                    client_id="a", client_secret="b", scopes=["a b"]
                ),
            },
        ),
    ],
)
async def test_a_connection_with_a_bad_field_is_refused_by_name(
    credentials: CredentialsServiceStub, victim: Customer, field: str, fields: dict[str, Any]
) -> None:
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
        await create(credentials, victim, **fields)
    assert await listed(credentials, victim) == []


@pytest.fixture(scope="session")
async def victim(mesh: Mesh) -> Customer:
    """Who makes none at all."""
    return await mesh.customer()


async def test_without_a_credential_nothing_is_made(
    credentials: CredentialsServiceStub, victim: Customer
) -> None:
    request = pb2.CreateConnectionRequest(request_id="r", provider="github", name="n")
    with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field="credential"):
        await credentials.CreateConnection(request, metadata=bearer(victim.key))


async def test_a_client_that_its_provider_refuses_is_not_kept(
    credentials: CredentialsServiceStub, victim: Customer, provider: ProviderDouble
) -> None:
    wrong = client_credentials(provider, client_secret="wrong")
    with expect_refused("FAILED_PRECONDITION", "AUTHORIZATION_REFUSED") as refused:
        await create(credentials, victim, provider="loopback", client_credentials=wrong)
    assert details(refused.value)[0].metadata["provider_error"] == "invalid_client"
    assert await listed(credentials, victim) == []


@pytest.mark.parametrize(
    "fault",
    [answers(500), answers(429, retry_after="7"), drops_before()],
    ids=["500", "429", "dropped"],
)
async def test_a_client_whose_provider_is_away_can_be_tried_again(
    credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble, fault: Any
) -> None:
    request = wanted(provider="loopback", client_credentials=client_credentials(provider))
    provider.next("/token", fault)
    with expect_refused("UNAVAILABLE", "PROVIDER_UNAVAILABLE"):
        await credentials.CreateConnection(request, metadata=bearer(customer.key))
    assert await listed(credentials, customer) == []
    await credentials.CreateConnection(request, metadata=bearer(customer.key))
    assert len(await listed(credentials, customer)) == 1


async def test_connections_are_listed_in_pages_newest_first(
    credentials: CredentialsServiceStub, customer: Customer
) -> None:
    made = [(await create(credentials, customer)).connection_id for _ in range(3)]
    found: list[str] = []
    token = ""
    while True:
        page = await credentials.ListConnections(
            pb2.ListConnectionsRequest(page_size=2, page_token=token),
            metadata=bearer(customer.key),
        )
        found += [connection.connection_id for connection in page.connections]
        token = page.next_page_token
        if not token:
            break
    assert found == made[::-1]
    active, broken = pb2.CONNECTION_STATE_ACTIVE, pb2.CONNECTION_STATE_NEEDS_REAUTHORIZATION
    assert len(await listed(credentials, customer, state=active)) == 3
    assert await listed(credentials, customer, state=broken) == []


@pytest.mark.parametrize(
    ("reason", "field", "fields"),
    [
        ("FIELD_INVALID", "page_size", {"page_size": 1_001}),
        ("FIELD_INVALID", "page_size", {"page_size": -1}),
        ("FIELD_INVALID", "state", {"state": 99}),
        ("PAGE_TOKEN_INVALID", "page_token", {"page_token": "nonsense"}),
    ],
)
async def test_a_bad_page_is_refused_by_name(
    credentials: CredentialsServiceStub,
    victim: Customer,
    reason: str,
    field: str,
    fields: dict[str, Any],
) -> None:
    with expect_refused("INVALID_ARGUMENT", reason, field=field):
        await listed(credentials, victim, **fields)


@pytest.mark.parametrize("named", ["", "x", "con_" + "0" * 26, "CON_" + "0" * 26, "con_\n"])
async def test_what_does_not_exist_is_not_found(
    credentials: CredentialsServiceStub, victim: Customer, named: str
) -> None:
    for method in (get, update, delete):
        with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
            await method(credentials, victim, named)


async def test_name_and_credential_can_be_changed(
    credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> None:
    made = await create(credentials, customer)
    changed = await update(credentials, customer, made.connection_id, name="Renamed")
    assert (changed.name, changed.provider) == ("Renamed", "github")
    token = pb2.StaticToken(token="another", expire_time=FAR)
    changed = await update(credentials, customer, made.connection_id, static_token=token)
    assert (changed.name, changed.token_expire_time) == ("Renamed", FAR)
    client = client_credentials(provider)
    own = await create(credentials, customer, provider="loopback", client_credentials=client)
    narrower = client_credentials(provider, scopes=["read"])
    changed = await update(credentials, customer, own.connection_id, client_credentials=narrower)
    assert list(changed.scopes) == ["read"]


async def test_a_change_that_cannot_be_changes_nothing(
    credentials: CredentialsServiceStub, customer: Customer, provider: ProviderDouble
) -> None:
    made = await create(
        credentials, customer, provider="loopback", client_credentials=client_credentials(provider)
    )
    named = made.connection_id
    for field, fields in (
        ("name", {"name": ""}),
        ("client_credentials.client_id", {"client_credentials": pb2.ClientCredentials()}),
    ):
        with expect_refused("INVALID_ARGUMENT", "FIELD_INVALID", field=field):
            await update(credentials, customer, named, **fields)
    other = {"name": "x", "static_token": pb2.StaticToken(token="t")}
    with expect_refused("FAILED_PRECONDITION", "CONNECTION_KIND"):
        await update(credentials, customer, named, **other)
    again = {"name": "x", "client_credentials": client_credentials(provider)}
    provider.next("/token", refuses("invalid_client", 401))
    with expect_refused("FAILED_PRECONDITION", "AUTHORIZATION_REFUSED"):
        await update(credentials, customer, named, **again)
    provider.next("/token", answers(503))
    with expect_refused("UNAVAILABLE", "PROVIDER_UNAVAILABLE"):
        await update(credentials, customer, named, **again)
    assert await get(credentials, customer, named) == made


async def test_a_connection_that_was_never_there_has_no_answer_of_its_own(
    credentials: CredentialsServiceStub, victim: Customer
) -> None:
    with expect_refused("NOT_FOUND", "RESOURCE_NOT_FOUND"):
        await delete(credentials, victim, new_connection_id())
